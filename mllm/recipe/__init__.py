"""`mllm recipe FILE`: stages and the commands between them in order, each done once.

steps.py      the file: its keys, what each step runs, reads and writes
journal.py    times.json: what was done, from which inputs, in how many seconds
runner.py     the steps, one process each; signals reach the one that runs
command.py    the verb
"""
