"""The chat in a browser, and an endpoint that OpenAI's clients know, on one port.

guard.py    who may ask what, before anything else sees a request
refusal.py  errors in OpenAI's form
asked.py    a body of /v1/chat/completions as conversation, settings and stops
stops.py    texts that end an answer
api.py      /v1/models, /v1/chat/completions
session.py  what one browser session does to its conversation
show.py     the same for eyes: messages, thumbnails, bars; nothing in it becomes markup
parts.py    what the page consists of
page.py     what each part does to the session
look.py     its colours and widths
serve.py    all of these on a port, until Ctrl-C
"""
