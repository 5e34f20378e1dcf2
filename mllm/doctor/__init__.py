"""`mllm doctor`: checks that a user runs on the machine where the training will be.

`environment` says what is installed, `world` makes corpora and a tokenizer, and each other module
holds the checks of one topic. A check takes what it examines and calls the code that training runs:
where that is broken, it fails.
"""
