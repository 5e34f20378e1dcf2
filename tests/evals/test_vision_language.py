"""The published sets as tasks, on miniatures of their layouts with pictures of plain colours."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evals import java_scorers
from evals.api import CandidateScore, Generated, GenerateRequest, Prompt, RankRequest, Task
from evals.command import main
from evals.options import TaskOptions
from evals.run import CellOptions, run_cell
from evals.shots import build_prompts
from evals.table import verdict_lines
from evals.tasks.memes import ANSWERS
from evals.tasks.vision_language import VISION_TASKS
from mllm.errors import UserError
from tests.evals import miniatures
from tests.evals.conftest import COLOURS, FakeModel, png
from tests.evals.test_exported import export  # noqa: F401 (a fixture)

MAKERS: dict[str, Callable[[Path], None]] = {
    "coco_caption": miniatures.coco,
    "flickr30k_caption": miniatures.flickr30k,
    "vqav2": miniatures.vqav2,
    "vizwiz": miniatures.vizwiz_list,
    "okvqa": miniatures.okvqa,
    "textvqa": miniatures.textvqa,
    "hateful_memes": miniatures.memes,
    "websrc": miniatures.web,
    "websrc_no_text": miniatures.web,
}
# The miniature has one answer to each of its questions, whatever the picture.
ALIKE = ("vizwiz", "textvqa", "websrc", "websrc_no_text")
# Two of its three questions are about one picture, so that no exchange is possible.
SHARED = ("vqav2", "okvqa")
PICTURES = (".jpg", ".png")
OPTIONS = CellOptions(num_shots=0, batch_size=4)


@pytest.fixture(autouse=True)
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """Java's programs take half a minute to start; `test_captions.py` has them run."""
    monkeypatch.setattr(java_scorers, "why_no_java_tools", lambda: "no Java")
    monkeypatch.setattr(java_scorers, "why_no_spice", lambda: "no jars")


def paint(folder: Path) -> None:
    """Gives every picture of a miniature content of its own."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in PICTURES)
    for number, path in enumerate(paths):
        path.write_bytes(png(COLOURS["red"], size=20, mark=number))


def make(name: str, folder: Path, **options: Any) -> Task:
    if not any(folder.iterdir()):
        MAKERS[name](folder)
        paint(folder)
    return VISION_TASKS[name].make(folder, TaskOptions(**options))


def prompts(task: Task, num_shots: int) -> list[Prompt]:
    model = FakeModel()
    model.seq_len = model.max_positions = 2000
    made = build_prompts(
        [task.query(query_id) for query_id in task.ids()],
        task.support,
        seed=0,
        task=task.name,
        split=task.split,
        num_shots=num_shots,
        separator="eos",
    )
    return [task.fitted(prompt, model) for prompt in made]


def spelled(prompt: Prompt) -> str:
    """A prompt as the model sees it, pictures as `<image>`."""
    texts = []
    for shot in prompt.shots:
        texts += [getattr(segment, "text", "<image>") for segment in shot.segments] + ["</s>"]
    texts += [getattr(segment, "text", "<image>") for segment in prompt.query.segments]
    return "".join(texts)


class Oracle(FakeModel):
    """Answers right where the picture is the question's own, and `nothing` elsewhere."""

    seq_len = max_positions = 2000

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.known = {self._seen(q): q.gold for q in map(task.query, task.ids())}

    def _seen(self, query: Any) -> tuple[tuple[bytes, ...], str]:
        return query.images, query.segments[-1].text

    def generate_until(self, requests: Sequence[GenerateRequest]) -> list[Generated]:
        self._ask([request.prompt.query.id for request in requests])
        said = [self.known.get(self._seen(r.prompt.query), "nothing") for r in requests]
        return [Generated(f" {text}", 4, False) for text in said]

    def loglikelihood(self, requests: Sequence[RankRequest]) -> list[list[CandidateScore]]:
        said = [self.known.get(self._seen(r.prompt.query)) for r in requests]
        return [
            [
                CandidateScore(text, -1.0 if text.strip() == answer else -2.0, 1, 3, 3)
                for text in texts
            ]
            for answer, texts in zip(said, (r.candidates for r in requests), strict=True)
        ]


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().split("\n")[:-1]]


# ----------------------------------------------------------------------------------------------
# Prompts

VQA = "Question: is it red? Answer:"
INSTRUCTION = (
    "Given the context below from web page, extract the answer from the given text like this: "
    "Qusestion: Who is the publisher of this book? Answer: Penguin Books Ltd."
)
ZERO_SHOT = [
    ("coco_caption", "kosmos", "<image>An image of"),
    ("flickr30k_caption", "openflamingo", "<image>Output:"),
    (
        "coco_caption",
        "idefics",
        "Instruction: provide a short caption of the input image.\nImage:<image>Image description:",
    ),
    ("vqav2", "kosmos", f"<image>{VQA}"),
    ("okvqa", "openflamingo", "<image>Question:is it red? Short answer:"),
    (
        "vqav2",
        "idefics",
        "Instruction: provide an answer to the question. Use the image to answer.\n"
        f"Image:<image>{VQA}",
    ),
    ("vizwiz", "kosmos", "<image>Question: What is this? Answer:"),
    ("textvqa", "kosmos", "<image>Question: what does it say? Answer:"),
    (
        "hateful_memes",
        "kosmos",
        "<image>Question: does this picture contain real hate speech? Answer:",
    ),
    (
        "hateful_memes",
        "openflamingo",
        "<image>is an image with: 'a\u2028b\nc' written on it. Is it hateful? Answer:",
    ),
    (
        "websrc",
        "kosmos",
        f"<image>{INSTRUCTION} Context: Red car Price: 5 < 6 Q: What is it? A:",
    ),
    ("websrc_no_text", "kosmos", f"<image>{INSTRUCTION} Q: What is it? A:"),
]


@pytest.mark.parametrize(("name", "style", "wanted"), ZERO_SHOT)
def test_a_prompt_is_the_papers_or_the_peers(name: str, style: str, wanted: str, tmp_path: Path):
    task = make(name, tmp_path, prompt_style=style)
    assert spelled(prompts(task, 0)[0]) == wanted


FEW_SHOT = [
    ("flickr30k_caption", "kosmos", "<image>An image of A dog number {}, seen 0 times.</s>"),
    ("coco_caption", "openflamingo", "<image>Output:A dog number {}, seen 0 times.</s>"),
    (
        "coco_caption",
        "idefics",
        "Image:<image>Image description: A dog number {}, seen 0 times.\n</s>",
    ),
]


@pytest.mark.parametrize(("name", "style", "shot"), FEW_SHOT)
def test_a_shot_shows_the_first_sentence_of_train_or_restval(name, style, shot, tmp_path: Path):
    task = make(name, tmp_path, prompt_style=style)
    for prompt in prompts(task, 2):
        query = spelled(prompts(task, 0)[0])
        instruction = query[: query.index("Image:")] if style == "idefics" else ""
        first, second = (shot.format(i) for i in (1, 2))
        bare = query.removeprefix(instruction)
        assert spelled(prompt) in (
            instruction + first + second + bare,
            instruction + second + first + bare,
        )


def test_a_shown_answer_is_the_majority_or_the_first(tmp_path: Path):
    MAKERS["vqav2"](tmp_path)
    path = tmp_path / "v2_mscoco_train2014_annotations.json"
    value = json.loads(path.read_text())
    for annotation in value["annotations"]:
        annotation["answers"] = annotation["answers"][::-1]  # the minority's first
    path.write_text(json.dumps(value))
    paint(tmp_path)
    shown = {}
    for which in ("majority", "first"):
        support = make("vqav2", tmp_path, shown_answer=which).support()
        shown[which] = [support.read(sample_id).answer for sample_id in support.ids]
    assert shown == {"majority": [" yes", " 2", " dog"], "first": [" no", " 3", " cat"]}


def test_memes_and_pages_show_their_answers(tmp_path: Path):
    (tmp_path / "memes").mkdir()
    (tmp_path / "web").mkdir()
    memes = make("hateful_memes", tmp_path / "memes").support()
    assert [memes.read(i).answer for i in memes.ids] == [" yes", " no"] * 3
    pages = make("websrc", tmp_path / "web").support()
    assert [pages.read(i).answer for i in pages.ids] == [' A "red" car, new', " yes"]


def test_no_shot_shows_the_querys_picture(tmp_path: Path):
    """Training questions about the very picture that is asked about, under another name."""
    MAKERS["vqav2"](tmp_path)
    paint(tmp_path)
    names = {p: tmp_path / f"{p}2014" / f"COCO_{p}2014_{42:012d}.jpg" for p in ("train", "val")}
    names["train"].write_bytes(names["val"].read_bytes())
    task = make("vqav2", tmp_path)
    found = {prompt.query.id: [shot.id for shot in prompt.shots] for prompt in prompts(task, 1)}
    assert found["421"] == found["422"] == ["431"]
    assert found["431"] != ["431"]  # a shot's id is never the query's
    with pytest.raises(UserError, match="only 1 usable"):
        prompts(task, 2)


# ----------------------------------------------------------------------------------------------
# Cells


@pytest.mark.parametrize("name", MAKERS)
def test_who_sees_the_picture_scores_all_and_its_blind_control_less(name: str, tmp_path: Path):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    task = make(name, data)
    cell = run_cell(task, Oracle(task), OPTIONS, out)
    assert cell["n"] == len(task.ids()) and cell["metric"] == task.metric
    if "caption" in name:
        assert cell["score"] > 100 and cell["verdicts"][0]["relation"] in (
            "better than",
            "level with",
        )
    elif name == "vizwiz":
        assert cell["score"] == cell["majority"] == 100.0  # always unanswerable
        assert cell["baselines"]["always 'unanswerable'"] == 100.0
    else:
        assert cell["score"] == 100.0
    if name in SHARED:
        assert cell["blind"] is None
    elif name not in ALIKE:
        assert cell["blind"]["score"] < cell["score"]
    # A miniature is a part of its release, and that is said.
    assert bool(cell["left_out"]) == (not name.startswith("websrc"))
    assert verdict_lines([cell])
    few = run_cell(task, Oracle(task), replace(OPTIONS, num_shots=1, controls=("permuted",)), out)
    assert few["n"] == cell["n"] and "permuted" in few["controls"]


def test_blind_vqa_is_asked_with_another_questions_picture(tmp_path: Path):
    data = tmp_path / "data"
    MAKERS["vqav2"](data)
    for kind, file in (
        ("questions", "v2_OpenEnded_mscoco_val2014_questions.json"),
        ("annotations", "v2_mscoco_val2014_annotations.json"),
    ):
        value = json.loads((data / file).read_text())
        for old in [row for row in value[kind] if row["image_id"] == 42]:
            value[kind].append(old | {"question_id": old["question_id"] + 20, "image_id": 44})
        (data / file).write_text(json.dumps(value))
    miniatures.picture(data / f"val2014/COCO_val2014_{44:012d}.jpg")
    paint(data)
    task = make("vqav2", data)
    model = Oracle(task)
    model.known = {key: gold for key, gold in model.known.items() if gold != "dog"}
    cell = run_cell(task, model, OPTIONS, tmp_path / "out")
    folder = tmp_path / "out/vqav2_val/k0/seed0"
    own, blind = (rows_of(path) for path in (folder, folder / "blind"))
    assert cell["n"] == 5 and cell["blind"]["score"] < cell["score"] == 80.0
    assert all(a["pictures"] != b["pictures"] for a, b in zip(own, blind, strict=True))


def test_captions_say_what_spice_lacks_and_what_the_prompts_words_cost(tmp_path: Path):
    (tmp_path / "data").mkdir()
    task = make("coco_caption", tmp_path / "data")
    cell = run_cell(task, Oracle(task), replace(OPTIONS, controls=()), tmp_path / "out")
    extra = cell["extra"]
    assert 0 < extra["cider_d_simple_with_the_prompt"] < cell["score"]
    assert extra["absent"] == {"METEOR": "no Java", "SPICE": "no jars"} and "SPICE" not in extra
    lines = verdict_lines([cell])
    assert "coco_caption (test) k=0: no SPICE: no jars" in lines
    few = run_cell(task, Oracle(task), replace(OPTIONS, num_shots=1, controls=()), tmp_path / "out")
    assert "absent" not in few["extra"]  # SPICE is reported without shots


def test_vqa_rows_hold_both_modes_groups_and_a_file_for_the_server(tmp_path: Path):
    (tmp_path / "data").mkdir()
    task = make("vqav2", tmp_path / "data")

    class Shouts(Oracle):
        def generate_until(self, requests: Sequence[GenerateRequest]) -> list[Generated]:
            return [replace(g, text=g.text.upper() + ".") for g in super().generate_until(requests)]

    path = tmp_path / "data/v2_mscoco_val2014_annotations.json"
    value = json.loads(path.read_text())
    for answer in value["annotations"][0]["answers"]:
        answer["answer"] = "dog"  # all ten the same: the official code then normalises nothing
    path.write_text(json.dumps(value))
    task = make("vqav2", tmp_path / "data")
    cell = run_cell(task, Shouts(task), replace(OPTIONS, controls=()), tmp_path / "out")
    assert cell["score"] == pytest.approx(200 / 3, abs=1e-3)
    assert cell["extra"]["vqa_acc_always"] == 100.0
    assert cell["extra"]["answer_type"] == {"number": 100.0, "other": 0.0, "yes/no": 100.0}
    assert cell["extra"]["question_type"] == {"how": 100.0, "is": 100.0, "what": 0.0}
    folder = tmp_path / "out/vqav2_val/k0/seed0"
    assert json.loads((folder / "submission.json").read_text()) == [
        {"question_id": 421, "answer": "yes"},
        {"question_id": 422, "answer": "2"},
        {"question_id": 431, "answer": "dog"},
    ]
    assert rows_of(folder)[0]["answers"] == ["yes"] * 8 + ["no"] * 2
    # Both questions about picture 42 are one cluster of the standard error.
    assert len({row["pictures"] for row in rows_of(folder)}) == 2


def test_vizwiz_submits_by_picture(tmp_path: Path):
    task = make("vizwiz", tmp_path)
    rows = [{"id": "VizWiz_val_00000000.jpg", "answer": "Two dogs."}]
    assert task.submission(rows) == [{"image": "VizWiz_val_00000000.jpg", "answer": "2 dogs"}]


def test_openflamingos_cuts(tmp_path: Path):
    (tmp_path / "vqa").mkdir()
    (tmp_path / "coco").mkdir()
    vqa = make("vqav2", tmp_path / "vqa", prompt_style="openflamingo")
    query = vqa.query("421")
    said = {
        "yes, it is": "yes",
        "yes Question:why": "yes",
        "yes\nShort answer:no": "yes",
        " yesAnswer": "yes",
        "yes,no": "yes,no",
    }
    for text, wanted in said.items():
        assert vqa.row(query, [Generated(text, 3, False)])["answer"] == wanted
    caption = make("coco_caption", tmp_path / "coco", prompt_style="openflamingo")
    row = caption.row(caption.query("4"), [Generated("a dog.\nOutput:a cat", 3, False)])
    assert (row["raw"], row["answer"]) == ("a dog.\nOutput:a cat", "a dog.")
    request = caption.request(Prompt((), caption.query("4")))
    assert isinstance(request, GenerateRequest)
    assert (request.num_beams, request.max_new_tokens, request.length_penalty) == (3, 20, 0.0)
    kosmos = make("coco_caption", tmp_path / "coco").request(Prompt((), caption.query("4")))
    assert (kosmos.num_beams, kosmos.max_new_tokens, kosmos.length_penalty) == (5, 30, 1.0)
    chosen = make("coco_caption", tmp_path / "coco", prompt_style="openflamingo", num_beams=1)
    assert chosen.settings["num_beams"] == 1  # the user's word counts


def test_okvqa_compares_and_shows_answers_as_typed(tmp_path: Path):
    task = make("okvqa", tmp_path)
    assert [task.query(i).gold for i in task.ids()] == ["yess", "2s", "dogs"]
    assert task.query("421").meta["answers"] == ["yess"] * 8 + ["nos"] * 2
    assert task.support().read("421").answer == " yess"
    assert task.settings["okvqa_match"] == "raw"


def test_one_class_of_memes_has_no_area_and_says_so(tmp_path: Path):
    (tmp_path / "data").mkdir()
    MAKERS["hateful_memes"](tmp_path / "data")
    path = tmp_path / "data/dev_seen.jsonl"
    path.write_text(path.read_text().replace('"label": 1', '"label": 0'))
    paint(tmp_path / "data")
    task = make("hateful_memes", tmp_path / "data")
    cell = run_cell(task, Oracle(task), OPTIONS, tmp_path / "out")
    assert cell["score"] is None and cell["se"] is None and cell["extra"]["accuracy"] == 100.0
    assert (
        "hateful_memes (dev_seen) k=0: no ROC AUC: all 6 labels are no: no pair to compare"
        in verdict_lines([cell])
    )


def test_memes_are_ordered_by_the_difference_of_both_answers(tmp_path: Path):
    task = make("hateful_memes", tmp_path)
    query = task.query(task.ids()[0])

    def row(no: tuple[float, int], yes: tuple[float, int]) -> dict:
        scores = [
            CandidateScore(t, ll, n, 2, 2) for t, (ll, n) in zip(ANSWERS, (no, yes), strict=True)
        ]
        return task.row(query, [scores])

    assert row((-1.0, 2), (-3.0, 2))["yes_over_no"] == -2.0
    assert row((-1.0, 1), (-3.0, 4))["yes_over_no"] == 0.25  # per token, as lengths differ
    assert row((-2.0, 1), (-2.0, 1))["answer"] == "no"  # s = 0 is not above 0


def test_a_page_that_does_not_fit_is_cut_at_its_end_and_counted(tmp_path: Path):
    (tmp_path / "data").mkdir()
    MAKERS["websrc"](tmp_path / "data")
    page = tmp_path / "data/auto/01/processed_data/0100001.html"
    page.write_text("<body>" + " ".join(f"word{i}" for i in range(500)) + "</body>")
    paint(tmp_path / "data")
    task = make("websrc", tmp_path / "data")
    model = Oracle(task)
    model.seq_len = model.max_positions = 400
    cell = run_cell(task, model, replace(OPTIONS, controls=()), tmp_path / "out")
    rows = rows_of(tmp_path / "out/websrc_dev/k0/seed0")
    assert cell["extra"]["num_truncated"] == 2 and cell["n"] == 4
    assert [row["is_truncated"] for row in rows] == [True, True, False, False]
    for row in rows[:2]:
        used = row["n_prompt_tokens"] + task.max_new_tokens
        assert 400 - len(" word10") < used <= 400  # not a word more would fit
    assert rows[0]["screenshot"] == [20, 20]


# ----------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize("name", MAKERS)
def test_missing_pictures_are_refused_or_left_out_and_counted(name: str, tmp_path: Path):
    task = make(name, tmp_path)
    before, print_before = len(task.ids()), task.data_fingerprint
    first = task.query(task.ids()[0]).segments[0].path
    first.unlink()
    with pytest.raises(UserError, match=rf"1 of \d+ pictures are missing .*{first.name}.*--skip"):
        make(name, tmp_path)
    left = make(name, tmp_path, skip_missing=True)
    assert len(left.ids()) < before
    assert left.problems()["whose picture is missing"] == before - len(left.ids())
    assert left.data_fingerprint != print_before


def test_missing_pictures_of_exemplars_show_when_shots_are_asked_for(tmp_path: Path):
    task = make("coco_caption", tmp_path)
    next((tmp_path / "train2014").iterdir()).unlink()
    with pytest.raises(UserError, match="1 of 2 pictures are missing"):
        task.support()
    left = make("coco_caption", tmp_path, skip_missing=True)
    assert len(left.support().ids) == 1
    assert left.problems()["exemplars whose picture is missing"] == 1


BAD = [
    ("vqav2", "v2_mscoco_val2014_annotations.json", None, "no such file.*unpack VQAv2's download"),
    ("coco_caption", "dataset_coco.json", None, "no such file.*Karpathy"),
    ("okvqa", "mscoco_val2014_annotations.json", ("raw_answer", "raw"), '"raw_answer"; are these'),
    ("vizwiz", "Annotations/val.json", ('"answers"', '"answer_list"'), "no human answers; are"),
    (
        "hateful_memes",
        "dev_seen.jsonl",
        ('"label": 0, ', ""),
        "3 memes of evaluation have no label",
    ),
    ("websrc", "dataset_split_release.json", None, "no such file.*WebSRC"),
]


@pytest.mark.parametrize(("name", "file", "change", "message"), BAD)
def test_bad_files_are_one_line_that_names_them(name, file, change, message, tmp_path: Path):
    make(name, tmp_path)
    path = tmp_path / file
    if change is None:
        path.unlink()
    else:
        path.write_text(path.read_text().replace(*change))
    with pytest.raises(UserError, match=message) as caught:
        make(name, tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_choices_that_a_task_has_not_are_refused(tmp_path: Path):
    (tmp_path / "memes").mkdir()
    with pytest.raises(UserError, match="idefics: there is none for hateful_memes; one of kosmos"):
        make("hateful_memes", tmp_path / "memes", prompt_style="idefics")
    (tmp_path / "web").mkdir()
    task = make("websrc", tmp_path / "web")
    path = tmp_path / "web/auto/01/processed_data/0100001.png"
    path.write_text("no picture")
    with pytest.raises(UserError, match=f"{path.name}: does not open as a picture"):
        task.query(task.ids()[0])


# ----------------------------------------------------------------------------------------------
# The command


def test_vqav2_by_name_on_a_real_export(
    export: SimpleNamespace,  # noqa: F811
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
):
    data = tmp_path / "coco"
    data.mkdir()
    make("vqav2", data)
    given = [
        "--model",
        str(export.folder),
        "--data",
        f"coco={data}",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(["vqav2", *given, "--shots", "0,1", "--seeds", "0", "--json"]) == 0
    results = json.loads(capfd.readouterr().out)
    cells = {cell["shots"]: cell for cell in results["cells"]}
    assert list(cells) == ["0", "1"] and all(cell["n"] == 3 for cell in cells.values())
    left_out = {"of the release's 214,354 questions, which are not in the file": 214_351}
    assert cells["0"]["left_out"] == left_out
    assert (tmp_path / "out/vqav2_val/k1/seed0/submission.json").exists()
    assert (tmp_path / "out/vqav2_val/k1/seed0/permuted/samples.jsonl").exists()
    # Measured again without a model, to the same figures.
    assert (
        main(["vqav2", "--data", f"coco={data}", "--out", str(tmp_path / "out"), "--rescore"]) == 0
    )
    again = json.loads((tmp_path / "out/results.json").read_text())
    assert again["cells"] == results["cells"]


def test_the_list_names_files_source_and_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make("flickr30k_caption", tmp_path)
    assert main(["list", "--data", f"flickr30k={tmp_path}", "--json"]) == 0
    tasks = {task["name"]: task for task in json.loads(capsys.readouterr().out)["tasks"]}
    assert tasks["flickr30k_caption"]["state"] == "ready"
    assert tasks["websrc"]["state"] == "missing: --data websrc=DIR"
    for name in VISION_TASKS:
        assert tasks[name]["files"] and tasks[name]["source"].startswith("https://")
