"""Corpus work as datatrove pipelines: read, filter, deduplicate, decontaminate, write shards.

    readers/       foreign formats to records
    filters.py     records judged one by one (texts.py, images.py, quality.py), each drop counted
    dedup.py       exact, near (MinHash) and perceptual duplicates: fingerprints.py, pairs.py,
                   clusters.py, and duplicates.py that drops
    decontaminate.py   what evaluation files (evaluation_files.py) hold as well
    statistics.py  datatrove's figures of texts
    write.py       records to shards
    run.py         the steps on datatrove's executors: local processes, SLURM, Ray

The input is cut into *units* (a file, or a part of one), in a fixed order. Every step runs once a
unit, with the unit's number as datatrove's rank and the number of units as its world size, whatever
the number of tasks; so the output is the same for any number of tasks.
"""
