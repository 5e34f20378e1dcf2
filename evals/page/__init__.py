"""`OUT/report.html` of an evaluation: one self-contained page over every cell.

examples.py   which queries are shown: a draw by seed, the worst errors; and their prompts again
prompts.py    a prompt as the model was given it, with its pictures, and what came of it
sections.py   the parts of the page, from results.json, the rows beside it and the tasks

Scores, curves, markup and look are those of `mllm report`.
"""

from evals.page.sections import write_page

__all__ = ["write_page"]
