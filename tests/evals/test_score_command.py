import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evals import java_scorers
from evals.score_command import TASKS, main
from mllm.errors import UserError
from tests.evals.miniatures import (
    coco,
    coco_annotations,
    flickr30k,
    memes,
    questions_and_annotations,
    textvqa,
    vizwiz_list,
    vizwiz_rows,
    web,
    write,
)


def score(capsys: pytest.CaptureFixture[str], task: str, *flags: object) -> dict[str, Any]:
    """What `mllm eval score --json` prints."""
    assert main(["--task", task, "--json", *map(str, flags)]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def vqa_files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Predictions that are right, 0.3 right and wrong; annotations; questions."""
    asked, annotated = questions_and_annotations(with_raw=True)
    given = [(421, "Yes."), (422, "3"), (431, "cow")]
    rows = [{"question_id": q, "answer": a} for q, a in given]
    for name, value in (("answers", rows), ("annotations", annotated), ("questions", asked)):
        write(tmp_path / f"{name}.json", value)
    answers, annotations, questions = (
        tmp_path / f"{name}.json" for name in ("answers", "annotations", "questions")
    )
    return answers, annotations, questions


def test_vqa_scores_with_errors_clustered_by_image_groups_and_a_constant(vqa_files, capsys):
    answers, annotations, questions = vqa_files
    flags = ("--predictions", answers, "--annotations", annotations)
    result = score(capsys, "vqav2", *flags, "--questions", questions)
    assert result["n"] == 3
    # 1.0, 0.3 and 0: by images 42 (two questions) and 43.
    assert result["metrics"]["vqa_acc"]["value"] == 43.33
    residuals = [130 - 2 * 130 / 3, -130 / 3]
    se = (2 * sum(r**2 for r in residuals)) ** 0.5 / 3
    assert result["metrics"]["vqa_acc"]["se"] == pytest.approx(se)
    assert result["groups"]["answer_type"]["yes/no"] == {"value": 100.0, "n": 1}
    assert result["groups"]["question_type"]["how"] == {"value": 30.0, "n": 1}
    assert set(result["baselines"]) == {"always '2'", "commonest of its question type"}
    assert result["baselines"]["commonest of its question type"]["vqa_acc"] == 100.0
    assert set(result["sha256"]) == {str(path) for path in vqa_files}
    assert score(capsys, "vqav2", *flags)["metrics"]["vqa_acc"] == result["metrics"]["vqa_acc"]


def test_okvqa_compares_answers_as_typed(vqa_files, capsys):
    answers, annotations, _ = vqa_files
    flags = ("--predictions", answers, "--annotations", annotations)
    raw = score(capsys, "okvqa", *flags)
    assert raw["settings"]["okvqa match"] == "raw"
    assert raw["metrics"]["vqa_acc"]["value"] == 0.0  # the miniature's raw answers end in s
    write(answers, [{"question_id": q, "answer": "2s"} for q in (421, 422, 431)])
    assert score(capsys, "okvqa", *flags)["metrics"]["vqa_acc"]["value"] == 33.33


def test_textvqa_and_a_folder_as_annotations(tmp_path: Path, capsys):
    textvqa(tmp_path)
    write(tmp_path / "p.json", [{"question_id": n, "answer": "go"} for n in (3, 4)])
    for gold in (tmp_path, tmp_path / "TextVQA_0.5.1_val.json"):
        result = score(
            capsys, "textvqa", "--predictions", tmp_path / "p.json", "--annotations", gold
        )
        assert result["metrics"]["vqa_acc"]["value"] == 90.0


def test_vizwizs_constant_baseline_is_unanswerable(tmp_path: Path, capsys):
    vizwiz_list(tmp_path)
    rows = [{"image": row["image"], "answer": "dog"} for row in vizwiz_rows("val")]
    write(tmp_path / "p.json", rows)
    gold = tmp_path / "Annotations" / "val.json"
    result = score(capsys, "vizwiz", "--predictions", tmp_path / "p.json", "--annotations", gold)
    assert result["metrics"]["vqa_acc"]["value"] == 60.0  # one, two and three of ten: no ids needed
    assert result["baselines"] == {"always 'unanswerable'": {"vqa_acc": 100.0}}


def test_websrcs_em_and_f1(tmp_path: Path, capsys):
    web(tmp_path)
    answers = {f"{site}0000100001": "the red car" for site in ("au01", "bo11")}
    answers |= {f"{site}0000100002": "Yes!" for site in ("au01", "bo11")}
    write(tmp_path / "p.json", answers)
    flags = ("--predictions", tmp_path / "p.json", "--annotations", tmp_path)
    result = score(capsys, "websrc", *flags)
    assert result["metrics"]["EM"]["value"] == 50.0
    assert result["metrics"]["F1"]["value"] == pytest.approx(90.0)  # 2*2/(2+3) and 1
    assert result["n"] == 4
    write(tmp_path / "p.json", '{"au010000100001": "a", "au010000100001": "b"}')
    with pytest.raises(UserError, match=r"more than once \(au010000100001\)"):
        score(capsys, "websrc", *flags)


def meme_csv(path: Path, rows: list[tuple[Any, ...]]) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("id", "proba", "label"), *rows])
    return path


def test_memes_from_the_competitions_csv_without_leading_zeros(tmp_path: Path, capsys):
    memes(tmp_path)
    rows = [(i, 0.9 if i % 2 else 0.4, i % 2) for i in range(1243, 1249)]
    rows[0] = (1243, 0.3, 0)
    path = meme_csv(tmp_path / "p.csv", rows)
    gold = tmp_path / "dev_seen.jsonl"
    result = score(capsys, "hateful_memes", "--predictions", path, "--annotations", gold)
    assert result["metrics"]["ROC AUC"]["value"] == pytest.approx(100 * 6 / 9, abs=1e-4)
    assert result["metrics"]["accuracy"]["value"] == pytest.approx(100 * 5 / 6, abs=1e-4)
    lines = "".join(f'{{"id": "0{i}", "score": {p - 0.5}}}\n' for i, p, _ in rows)
    write(tmp_path / "p.jsonl", lines)
    flags = ("--predictions", tmp_path / "p.jsonl", "--annotations", gold)
    assert score(capsys, "hateful_memes", *flags)["metrics"] == result["metrics"]


def test_memes_of_one_class_have_no_auc_but_a_reason(tmp_path: Path, capsys):
    lines = [f'{{"id": {i}, "img": "img/{i:05d}.png", "label": 1, "text": "x"}}\n' for i in (1, 2)]
    write(tmp_path / "dev.jsonl", "".join(lines))
    path = meme_csv(tmp_path / "p.csv", [(1, 0.2, 0), (2, 0.7, 1)])
    flags = ("--predictions", path, "--annotations", tmp_path / "dev.jsonl")
    auc = score(capsys, "hateful_memes", *flags)["metrics"]["ROC AUC"]
    assert auc == {"value": None, "se": None, "reason": "all 2 labels are 1: no pair to compare"}


def test_ranking_rows_under_five_norms(tmp_path: Path, capsys):
    def candidate(text: str, ll: float, uncond: float) -> dict[str, Any]:
        lengths = {"n_tok": len(text.split()), "n_char": len(text), "n_byte": len(text.encode())}
        return {"text": f" {text}", "ll": ll, "ll_uncond": uncond, **lengths}

    pair = [candidate("owl", -6.0, -9.0), candidate("a brown bear", -8.0, -9.0)]
    rows = [{"id": n, "candidates": pair, "gold": gold} for n, gold in enumerate(["owl", 1])]
    write(tmp_path / "s.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    result = score(capsys, "ranking", "--predictions", tmp_path / "s.jsonl")
    assert next(iter(result["metrics"])) == "accuracy (token)" and len(result["metrics"]) == 5
    assert {m["value"] for m in result["metrics"].values()} == {50.0}
    assert result["baselines"]["chance"]["accuracy (sum)"] == 50.0


def test_labels_with_chance_and_majority(tmp_path: Path, capsys):
    write(tmp_path / "gold.csv", "id,label\n1,cat\n2,cat\n3,dog\n")
    write(tmp_path / "p.json", [{"id": i, "label": "cat"} for i in (3, 1, 2)])
    flags = ("--predictions", tmp_path / "p.json", "--annotations", tmp_path / "gold.csv")
    result = score(capsys, "labels", *flags)
    assert result["metrics"]["accuracy"]["value"] == pytest.approx(66.6667)
    assert result["metrics"]["macro-F1"]["value"] == pytest.approx(40.0)
    assert result["baselines"]["always 'cat'"]["accuracy"] == pytest.approx(66.6667)


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java_scorers, "why_no_java_tools", lambda: "there is no Java")


def captions_file(path: Path, texts: dict[Any, str]) -> Path:
    write(path, [{"image_id": image_id, "caption": text} for image_id, text in texts.items()])
    return path


def test_captions_of_karpathys_test_split_and_of_cocos_file(no_java, tmp_path: Path, capsys):
    coco(tmp_path)
    own = {4: "A dog number 4, seen 0 times.", 5: "A dog number 5,\u2028seen 0 times."}
    path = captions_file(tmp_path / "p.json", own)
    flags = ("--predictions", path, "--annotations")
    result = score(capsys, "coco_caption", *flags, tmp_path / "dataset_coco.json")
    headline = result["metrics"]["cider_d_simple"]
    assert result["n"] == 2 and result["settings"]["tokenizer"] == "simple (Python)"
    exchanged = result["baselines"]["another picture's caption"]["cider_d_simple"]
    assert headline["value"] > exchanged
    assert result["metrics"]["METEOR"] == {"value": None, "se": None, "reason": "there is no Java"}
    assert score(capsys, "coco_caption", *flags, tmp_path)["metrics"] == result["metrics"]
    write(tmp_path / "captions_val2014.json", coco_annotations())
    captions_file(path, {i: f"A cat number {i} on a mat." for i in (1, 2, 3)})
    result = score(capsys, "coco_caption", *flags, tmp_path / "captions_val2014.json")
    assert result["metrics"]["bleu_4_simple"]["value"] == pytest.approx(100.0, abs=1e-3)


def test_flickr30ks_images_by_stem_or_file(no_java, tmp_path: Path, capsys):
    flickr30k(tmp_path)
    texts = {"4000.jpg": "a dog", 5000: "a dog"}
    path = captions_file(tmp_path / "p.json", texts)
    flags = ("--predictions", path, "--annotations", tmp_path, "--no-java-scores")
    result = score(capsys, "flickr30k_caption", *flags)
    assert result["n"] == 2 and "METEOR" not in result["metrics"]


def test_missing_unknown_and_doubled_ids_are_errors_that_name_three(vqa_files):
    answers, annotations, _ = vqa_files
    flags = ["--task", "vqav2", "--predictions", str(answers), "--annotations", str(annotations)]
    rows = [{"question_id": q, "answer": "x"} for q in (421, 1, 2, 3, 4)]
    write(answers, rows)
    with pytest.raises(UserError) as error:
        main(flags)
    message = str(error.value)
    assert "2 of 3 questions missing (431, 422)" in message
    assert "4 questions unknown (1, 2, 3, ...)" in message and "\n" not in message
    write(answers, [rows[0], *rows])
    with pytest.raises(UserError, match=r"1 ids occur more than once \(421\)"):
        main(flags)
    write(answers, [])
    with pytest.raises(UserError, match="3 of 3 questions missing"):
        main(flags)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"question_id": 421}]', r'record 1: no "answer" \(found question_id\)'),
        ('[{"question_id": 421, "answer": null}]', '"answer" is null, must be a string'),
        ('[{"question_id": 42.0, "answer": ""}]', '"question_id" is 42.0, must be'),
        ('[{"question_id": 421, "ans', "line 1: not JSON"),
        ('{"a": 1}', "must be a list of objects"),
    ],
)
def test_spoilt_predictions_are_named(vqa_files, content: str, message: str):
    answers, annotations, _ = vqa_files
    write(answers, content)
    with pytest.raises(UserError, match=rf"answers\.json: .*{message}"):
        main(["--task", "vqav2", "--predictions", str(answers), "--annotations", str(annotations)])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(1243, "high", 1)], "line 2: \"proba\" is 'high', must be a number"),
        ([(1243, "nan", 1)], "not a number"),
        ([(1243, 1.5, 1)], "must be from 0 to 1"),
    ],
)
def test_spoilt_probabilities_are_named(tmp_path: Path, rows, message: str):
    memes(tmp_path)
    path = meme_csv(tmp_path / "p.csv", rows)
    with pytest.raises(UserError, match=message):
        main(
            ["--task", "hateful_memes", "--predictions", str(path), "--annotations", str(tmp_path)]
        )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task", "vqav2"], "--annotations is missing"),
        (["--task", "ranking", "--annotations", "x"], "leave it out"),
        (["--task", "vizwiz", "--annotations", "x", "--questions", "q"], "--questions"),
        (["--task", "vqav2", "--annotations", "x", "y", "--questions", "q"], "name the one"),
        (["--task", "vqav2", "--annotations", "x", "--okvqa-match", "raw"], "--okvqa-match"),
        (["--task", "vqa", "--annotations", "x"], "invalid choice"),
        (["--task", "vqav2", "--annotations", "nowhere.json"], "nowhere.json: no such file"),
    ],
)
def test_flags_that_cannot_be_meant_are_refused(flags: list[str], message: str):
    with pytest.raises(UserError, match=message):
        main(["--predictions", "p.json", *flags])


def test_a_part_whose_answers_are_kept_back_is_refused(tmp_path: Path):
    write(tmp_path / "test.json", [{"image": "a.jpg", "question": "What?"}])
    write(tmp_path / "p.json", [{"image": "a.jpg", "answer": "x"}])
    flags = [
        "--predictions",
        str(tmp_path / "p.json"),
        "--annotations",
        str(tmp_path / "test.json"),
    ]
    with pytest.raises(UserError, match="no gold answers"):
        main(["--task", "vizwiz", *flags])


def test_the_installed_command_needs_no_torch_and_writes_what_it_prints(vqa_files, tmp_path: Path):
    answers, annotations, _ = vqa_files
    code = (
        "import sys; from mllm.cli import main; code = main(sys.argv[1:]); "
        "assert not {'torch', 'deepspeed', 'transformers'} & set(sys.modules); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "eval", "score", "--task", "vqav2", "--json"]
    command += ["--predictions", str(answers), "--annotations", str(annotations)]
    out = tmp_path / "scores.json"
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(out.read_text())
    answers.unlink()
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("mllm: error:") and done.stderr.count("\n") == 1


def test_the_table_shows_n_errors_baselines_and_what_is_missing(vqa_files, tmp_path: Path, capsys):
    answers, annotations, _ = vqa_files
    assert (
        main(["--task", "vqav2", "--predictions", str(answers), "--annotations", str(annotations)])
        == 0
    )
    shown = capsys.readouterr().out
    for words in ("n = 3", "43.33 ±", "always '2'", "by answer_type:", "empty answers: 0"):
        assert words in shown


def test_help_has_an_example_of_every_kind(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    shown = capsys.readouterr().out
    assert done.value.code == 0 and "examples:" in shown
    assert all(f"  {name}" in shown for name in TASKS)
