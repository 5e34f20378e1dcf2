"""Chat with an exported model: a terminal, a browser, an OpenAI-compatible endpoint.

    line -> content -> conversation -> prompt -> engine -> answer, piece by piece

pictures.py      a user's pictures, read with limits, known by their hash
text.py          nothing that commands a terminal
lines.py         texts and pictures of a typed line
conversation.py  shots, turns, branches
transcript.py    the same as a JSON file
sampling.py      /set
prompt.py        a conversation as one row of tokens; what takes how much of the context
engine.py        the model: latents and prefixes computed once, answers streamed
once.py          one answer, or many independent ones, for pipelines
terminal/        the prompt: commands, completion, thumbnails
web/             the browser, and /v1/chat/completions
command.py       `mllm chat`
"""
