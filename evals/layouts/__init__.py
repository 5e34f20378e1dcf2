"""Data sets as users download them, read without a conversion step and without opening a picture.

files.py           JSON, JSON lines and CSV whose mistakes name file, record, key and the mend
images.py          where pictures lie, and what is said when some are missing
captions.py        COCO's annotation files, Karpathy's splits of COCO and Flickr30k
vqa.py             VQAv2, OK-VQA, TextVQA: questions joined with annotations by question_id
vizwiz.py          VizWiz: a list without question ids, or its rewrite in VQA's format
hateful_memes.py   one meme a line
websrc.py          a CSV a web site, and the visible text of its pages

Each data set's module has `load(folder, part)`: the records of a part, frozen dataclasses with
paths where pictures will be read from. Scores are made on `evaluation`; shots come from `training`.
"""
