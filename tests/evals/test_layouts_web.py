"""HatefulMemes and WebSRC."""

from pathlib import Path

import pytest

from evals.layouts import hateful_memes, websrc
from mllm.errors import UserError
from tests.evals.miniatures import PAGE, memes, web, write


def test_memes_are_known_by_their_pictures_names(tmp_path: Path):
    memes(tmp_path)
    first = hateful_memes.load(tmp_path, "evaluation")[0]
    assert (first.id, first.label, first.text) == ("01243", True, "a\u2028b\nc")
    (tmp_path / "dev_seen.jsonl").rename(tmp_path / "dev.jsonl")  # an older copy
    assert hateful_memes.load(tmp_path, "evaluation")[0] == first


def test_a_test_file_may_keep_labels_back_but_not_have_others(tmp_path: Path):
    line = '{"id": 1, "img": "img/00001.png", "text": "x"%s}\n'
    write(tmp_path / "test_seen.jsonl", line % "")
    assert hateful_memes.load(tmp_path, "test")[0].label is None
    write(tmp_path / "test_seen.jsonl", line % ', "label": 2')
    with pytest.raises(UserError, match=r'test_seen\.jsonl: line 1: "label" is 2, must be 0 or 1'):
        hateful_memes.load(tmp_path, "test")
    write(tmp_path / "test_seen.jsonl", line % "" + line % "")
    with pytest.raises(UserError, match=r"line 2: .*already there"):
        hateful_memes.load(tmp_path, "test")


def test_websrcs_split_pages_and_quoted_answers(tmp_path: Path):
    web(tmp_path)
    records = websrc.load(tmp_path, "evaluation")
    assert [r.id[:4] for r in records] == ["au01", "au01", "bo11", "bo11"]
    assert records[0].answer == 'A "red" car, new' and records[1].element_id == -1
    assert records[0].image_path == tmp_path / "auto" / "01" / "processed_data" / "0100001.png"
    assert websrc.web_text(records[0].html_path) == "Red car Price: 5 < 6"


def test_text_of_broken_html_is_still_read(tmp_path: Path):
    write(tmp_path / "a.html", "<head><title>x<body><p>One</i><b>two<script>x</script> three")
    assert websrc.web_text(tmp_path / "a.html") == "One two three"
    write(tmp_path / "b.html", PAGE.replace("<body>", "").replace("</head>", "</head >"))
    assert websrc.web_text(tmp_path / "b.html") == "Red car Price: 5 < 6"


def test_a_site_of_the_split_without_its_folder_is_named(tmp_path: Path):
    web(tmp_path)
    (tmp_path / "book" / "11" / "dataset.csv").unlink()
    with pytest.raises(UserError, match=r"1 of 2 sites of 'dev' have no dataset.csv .*bo11"):
        websrc.load(tmp_path, "evaluation")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("q,au01,1,0,a", r"line 2: \"id\" is 'au01', must be 14 characters"),
        ("q,au010000100001,x,0,a", "line 2: \"element_id\" is 'x', must be an integer"),
        ("q,au010000100001,1,0,a\nq,au010000100001,1,0,a", "line 3: .* already there"),
        ('q,au010000100001,1,0,"a', r"dataset\.csv: line \d: not CSV"),
    ],
)
def test_spoilt_rows_are_named(tmp_path: Path, row: str, message: str):
    write(tmp_path / "dataset.csv", f"question,id,element_id,answer_start,answer\n{row}\n")
    with pytest.raises(UserError, match=message):
        websrc.read_websrc(tmp_path / "dataset.csv")
