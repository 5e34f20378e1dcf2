"""Corpus work as datatrove pipelines: read, filter, deduplicate, decontaminate, write shards.

    readers/       foreign formats to records
    filters.py     records judged one by one, each drop counted with its reason
    dedup.py       exact, near (MinHash) and perceptual duplicates, over the whole corpus
    decontaminate.py   what evaluation files hold as well
    read.py, write.py   the first and the last step of a pass: units to records, records to shards
    plan.py        units and stages, and where their files lie
    run.py         the stages on datatrove's executors: local processes, SLURM, Ray
    report.py      what was kept and dropped, and why

The input is cut into *units* (a file, or a part of one), in a fixed order. Every step runs once a
unit, with the unit's number as datatrove's rank and the number of units as its world size, whatever
the number of tasks; so the output is the same for any number of tasks.
"""
