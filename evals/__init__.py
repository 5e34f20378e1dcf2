"""Evaluations: what an exported model says about held-out data, beside what chance says.

    task -> Query -> shots -> Prompt -> rank | generate -> row -> metric over all rows

api.py         the words of that line, and the narrow door to a model
shots.py       which exemplars a query gets
scoring.py     accuracy under norms, standard errors, VQA accuracy, exact match
captions.py    CIDEr-D, BLEU-4 and ROUGE-L, official where it can run
controls.py    blind controls, pixel neighbour, unigram and question-only baselines
tasks/         one small file per task
exported.py    an export folder behind the door
run.py         a cell: rows appended as they come, resumed by id, measured once
table.py       what is printed
page/          report.html: scores, curves, examples with their shots, worst errors
checkpoints.py the cells on every checkpoint of a run
command.py     `mllm eval`
"""
