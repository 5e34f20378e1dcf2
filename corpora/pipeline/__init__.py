"""Corpus work as datatrove pipelines: read, filter, deduplicate, decontaminate, write shards.

    readers/       foreign formats to records
    filters.py     records judged one by one, each drop counted with its reason
    dedup.py       exact, near (MinHash) and perceptual duplicates, over the whole corpus
    decontaminate.py   what evaluation files hold as well
    write.py       records to shards
    run.py         the steps on datatrove's executors: local processes, SLURM, Ray

The input is cut into *units* (a file, or a part of one), in a fixed order. Every step runs once a
unit, with the unit's number as datatrove's rank and the number of units as its world size, whatever
the number of tasks; so the output is the same for any number of tasks.
"""
