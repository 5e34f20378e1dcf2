"""`mllm report`: one self-contained HTML page over runs, scores, pictures and corpus.

inputs.py   reads run folders, results.json, samples.jsonl, the corpus report, times, the export
scores.py   each score beside its controls, and a verdict in words
samples.py  pictures drawn by seed, with what the model said about them
score_curves.py  scores over shots and over training, with what they are held against
curves.py   matplotlib curves as inline SVG that follows the page's colours
page.py     puts the sections in order; document.py is their frame and style.py its look, markup.py
            escapes everything
completions.py  what was said of held-out pictures, step after step; ledger.py what was set aside
training.py, charts.py, corpus.py and closing.py are the other sections, verdict.py the words
"""

from mllm.report.command import main

__all__ = ["main"]
