"""`mllm corpora import` with every step that cleans: the number of tasks changes nothing."""

import json

import pytest

from corpora.command import main
from tests.corpora.pipeline.test_dedup import edited, prose


@pytest.mark.slow
def test_a_cleaned_corpus_is_equal_for_any_number_of_tasks(tmp_path, capsys):
    texts = [prose(n) for n in range(300)]
    texts += [edited(texts[n], n, 2) for n in range(0, 300, 3)]  # near-duplicates, far behind
    texts += ["too short", texts[1]]
    source, held_out = tmp_path / "texts.jsonl", tmp_path / "eval.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts * 4))
    rows = {"question": " ".join(prose(7).split()[20:40])}, {"question": "Too short?"}
    held_out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = "--min-kept 0 --min-words 3 --dedup-exact content --dedup-near-text --statistics"
    shards, reports = [], []
    for tasks in ("1", "3"):
        out = tmp_path / tasks
        parts = f"import text {source} --out {out} --unit-megabytes 1 --tasks {tasks} --workers 1"
        assert (
            main([*parts.split(), *flags.split(), "--decontaminate", str(held_out), "--json"]) == 0
        )
        shards.append({path.name: path.read_bytes() for path in out.glob("*.tar")})
        reports.append(json.loads(capsys.readouterr().out))
    assert shards[0] == shards[1] and reports[0]["units"] == 2
    dropped = [{step["name"]: step["dropped"] for step in report["steps"]} for report in reports]
    assert dropped[0] == dropped[1]
    assert dropped[0]["text"] == {"under 3 words": 4}
    (searched,) = reports[0]["evaluation_files"]
    assert (searched["texts"], searched["short_texts"]) == (2, 1)
    assert dropped[0]["evaluation"] == {f"text of {held_out}": 4}  # edits of text 7: none
    # Three more copies of 299 texts and 100 edits, and one text that stands twice in each.
    exact, near = (dropped[0]["duplicates"][f"{kind} duplicate"] for kind in ("exact", "near"))
    assert exact == 3 * (299 + 100) + 4 and 95 <= near <= 100
    assert reports[0]["kept_samples"] == 299 + 100 - near
    metric = json.loads((tmp_path / "1/import-statistics/summary/n_words/metric.json").read_text())
    assert metric["summary"]["n"] == reports[0]["kept_samples"]
