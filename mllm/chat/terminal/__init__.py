"""The terminal: what is typed, what it does, how it looks.

typing.py      lines from a keyboard (history, completion, status line) or from a pipe
commands.py    the table of commands
session.py     what they do to a conversation
loading.py     the model, loaded while the user types
view.py        answers to stdout; everything else beside them
thumbnails.py  pictures in a terminal
"""
