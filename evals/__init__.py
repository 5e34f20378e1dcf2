"""Evaluations: what an exported model says about held-out data, beside what chance says.

    task -> Query -> shots -> Prompt -> rank | generate -> row -> metric over all rows

api.py         the words of that line, and the narrow door to a model
shots.py       which exemplars a query gets
scoring.py     accuracy under norms, AUC, standard errors, VQA accuracy, exact match and F1
captions.py    captions scored, by the official tokenizer where it can run: caption_formulas.py has
               CIDEr-D, BLEU and ROUGE-L, java_scorers.py the tokenizer, METEOR and SPICE
layouts/       official data sets as downloaded
score_command.py  `mllm eval score`: predictions.py reads them, official_scores.py scores them
controls.py    blind controls, pixel neighbour, unigram and question-only baselines
tasks/         one small file per task
exported.py    an export folder behind the door
run.py         a cell: rows appended as they come, resumed by id, measured once
asking.py      prompts through the door, stage by stage; the positions that answers take
cell_scores.py what a cell's rows say: score over seeds, its error, the baselines beside it
table.py       what is printed
page/          report.html: scores, curves, examples with their shots, worst errors
checkpoints.py the cells on every checkpoint of a run
command.py     `mllm eval`
harness/       other people's harnesses over an export
"""
