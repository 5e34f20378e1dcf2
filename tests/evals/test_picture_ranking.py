"""Rendered SST-2, Raven, ImageNet and CUB: their layouts in miniature, prompts word for word."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from corpora.document import ImageSegment, Segment
from evals.api import CandidateScore, GenerateRequest, Prompt, RankRequest, VariantRequest
from evals.options import TaskOptions
from evals.run import CellOptions, run_cell
from evals.table import verdict_lines
from evals.tasks.cub import make_described, make_pairs
from evals.tasks.imagenet import ImageNet, make_constrained
from evals.tasks.iq import Iq50, Raven, interval_95
from evals.tasks.rendered_sst2 import RenderedSst2, RenderedSst2Cot
from mllm.errors import UserError
from mllm.images import open_picture
from tests.evals.conftest import COLOURS, colour_of, png
from tests.evals.oracle import Oracle

ALONE = CellOptions(num_shots=0, controls=())
QUESTION = "Question: what is the sentiment of the opinion? Answer:"


def shown(segments: tuple[Segment, ...]) -> str:
    """A prompt with each picture as a `#`."""
    return "".join("#" if isinstance(s, ImageSegment) else s.text for s in segments)


def put(path: Path, colour: str = "red", mark: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(COLOURS[colour], mark=mark))


# ----------------------------------------------------------------------------------------------
# Rendered SST-2: positive opinions are green, negative ones red


@pytest.fixture(scope="module")
def sst2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sst2") / "rendered-sst2"
    for split, first in (("train", 0), ("test", 100)):
        for label, colour in (("positive", "green"), ("negative", "red")):
            for i in range(4):
                put(root / split / label / f"{i:04}.png", colour, mark=first + i)
    return root


class SeesSentiment(Oracle):
    """Knows the sentiment by the picture alone."""

    def loglikelihood(self, requests):
        self._take(requests)
        rows = []
        for request in requests:
            is_green = colour_of(request.prompt.query.images[0]) == "green"
            right = " positive" if is_green else " negative"
            texts = request.candidates
            rows.append([CandidateScore(t, -1.0 if t == right else -9.0, 2, 8, 8) for t in texts])
        return rows


def test_rendered_sst2_and_its_blind_control(sst2: Path, tmp_path: Path):
    task = RenderedSst2(sst2.parent)
    query = task.query("negative/0000")
    assert shown(query.segments) == "#" + QUESTION and query.gold == "negative"
    request = task.request(Prompt((), query))
    assert isinstance(request, RankRequest)
    assert set(request.candidates) == {" positive", " negative"}
    options = CellOptions(num_shots=2)
    cell = run_cell(task, SeesSentiment(), options, tmp_path)
    assert cell is not None and (cell["score"], cell["n"], cell["chance"]) == (100.0, 8, 50.0)
    assert cell["blind"]["score"] == 0.0  # every donor is of the other class
    shots = json.loads((tmp_path / "rendered_sst2_test/k2/seed0/shots.json").read_text())
    assert all(name.startswith("train/") for names in shots.values() for name in names)
    assert list(cell["left_out"].values()) == [1821 - 8]


def test_a_chain_of_thought_keeps_picture_and_rationale(sst2: Path, tmp_path: Path):
    model = SeesSentiment(says=" A long\n text. \n\n It is fun.")
    cell = run_cell(RenderedSst2Cot(sst2), model, replace(ALONE, controls=("blind",)), tmp_path)
    assert cell is not None and cell["score"] == 100.0 and cell["blind"]["score"] == 0.0
    described, ranked = model.requests[0], model.requests[8]
    assert isinstance(described, GenerateRequest) and described.max_new_tokens == 128
    assert (described.num_beams, described.choices) == (1, None)
    assert shown(described.prompt.query.segments) == "#Introduce this picture in detail:"
    expected = f"#A long text. It is fun. {QUESTION}"
    assert isinstance(ranked, RankRequest) and shown(ranked.prompt.query.segments) == expected
    path = tmp_path / "rendered_sst2_cot_test/k0/seed0/samples.jsonl"
    row = json.loads(path.read_text().split("\n")[0])
    assert row["rationale"] == "A long text. It is fun." and row["raw"] == model.says
    assert cell["extra"]["num_empty_rationales"] == 0
    silent = SeesSentiment(says=" \n")
    empty = run_cell(RenderedSst2Cot(sst2), silent, ALONE, tmp_path / "empty")
    assert empty is not None and empty["extra"]["num_empty_rationales"] == 8
    assert shown(silent.requests[8].prompt.query.segments) == f"#{QUESTION}"


def test_half_of_rendered_sst2_is_refused(sst2: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"test/negative: no such folder"):
        RenderedSst2(tmp_path)
    (tmp_path / "test/negative").mkdir(parents=True)
    with pytest.raises(UserError, match=r"test/negative: holds no \.png"):
        RenderedSst2(tmp_path)


# ----------------------------------------------------------------------------------------------
# Raven


@pytest.fixture
def iq(tmp_path: Path) -> Path:
    lines = []
    for i, num_cells in enumerate((3, 4, 8, 8)):
        context = [f"{i}/c{j}.png" for j in range(num_cells)]
        candidates = [f"{i}/a{j}.png" for j in range(6)]
        for j, name in enumerate([*context, *candidates]):
            put(tmp_path / name, "blue", mark=20 * i + j)
        puzzle = {"id": i, "context": context, "candidates": candidates, "answer": i}
        lines.append(json.dumps(puzzle) + "\r\n")
    (tmp_path / "iq.jsonl").write_bytes(b"\xef\xbb\xbf" + "".join(lines).encode())
    return tmp_path


def test_raven_asks_each_candidate_whether_it_is_correct(iq: Path, tmp_path: Path):
    task = Iq50(iq)
    request = task.request(Prompt((), task.query("0")))
    assert isinstance(request, VariantRequest) and request.texts == (" Yes",) * 6
    start = shown(request.prompt.query.segments)
    assert start == "Here are three images:###The following image is:"
    assert [shown(ending) for ending in request.endings] == ["#Is it correct?"] * 6
    assert shown(task.query("1").segments).startswith("Here are four images:####The")
    assert shown(task.query("2").segments).startswith("Here are eight images:########The")

    model = Oracle()
    cell = run_cell(task, model, replace(ALONE, controls=("own",)), tmp_path / "out")
    assert cell is not None and cell["score"] == 100.0
    assert cell["chance"] == pytest.approx(16.67, abs=0.01)
    alone = model.requests[-1].prompt.query.segments
    assert shown(alone) == "The following image is:" and cell["controls"]["no_context"]["n"] == 4
    assert any("95 % interval 51.0 to 100.0" in line for line in verdict_lines([cell]))


def test_the_interval_of_the_papers_score():
    """statsmodels' proportion_confint(11, 50, method="wilson") gives 0.1275, 0.3524."""
    assert interval_95(0.22, 50) == [12.75, 35.24]


def test_wrong_puzzles_are_named(iq: Path):
    good = json.loads((iq / "iq.jsonl").read_text("utf-8-sig").split("\n")[0])
    for change, message in (
        ({"answer": 6}, 'line 1: "answer" is 6, must be 0 to 5'),
        ({"context": ["a", "b"]}, '"context" has 2 paths, must have 3, 4 or 8'),
        ({"candidates": ["a"] * 5}, '"candidates" has 5 paths, must have 6'),
        ({"answer": "1"}, '"answer" is "1", must be an integer'),
        ({"context": [1, 2, 3]}, '"context" must be a list of paths'),
    ):
        (iq / "iq.jsonl").write_text(json.dumps(good | change))
        with pytest.raises(UserError, match=message):
            Iq50(iq)
    (iq / "iq.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(good)}\n")
    with pytest.raises(UserError, match='line 2: "id" 0 was already in line 1'):
        Iq50(iq)


def test_missing_pictures_are_named_or_skipped_and_counted(iq: Path, tmp_path: Path):
    (iq / "1/c0.png").unlink()
    (iq / "2/a5.png").unlink()
    with pytest.raises(UserError, match=r"2 pictures are missing \(.*c0\.png, .*a5\.png\)"):
        Iq50(iq)
    task = Iq50(iq, TaskOptions(skip_missing=True))
    cell = run_cell(task, Oracle(), ALONE, tmp_path / "out")
    assert cell is not None and cell["n"] == 2
    assert cell["left_out"] == {"without all their pictures": 2}


class Opens(Oracle):
    """Opens the pictures of the endings, as a model does."""

    def loglikelihood(self, requests):
        for picture in (ending[0] for request in requests for ending in request.endings):
            open_picture(picture.data)
        return super().loglikelihood(requests)


def test_a_picture_that_does_not_open_is_named(iq: Path, tmp_path: Path):
    (iq / "0/c1.png").write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match=r"0/c1\.png: does not open as a picture"):
        run_cell(Iq50(iq), Opens(), replace(ALONE, controls=("blind",)), tmp_path / "blind")
    put(iq / "0/c1.png")
    (iq / "3/a1.png").write_bytes(png(COLOURS["red"])[:60])  # half a download
    with pytest.raises(UserError, match=r"3/a1\.png: does not open as a picture"):
        run_cell(Iq50(iq), Opens(), ALONE, tmp_path / "asked")


def npz(path: Path, **changes: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = np.arange(16, dtype=np.uint8)[:, None, None] * np.ones((1, 160, 160), np.uint8)
    np.savez(path, **({"image": images, "target": np.array(5)} | changes))


def test_raven_npz(tmp_path: Path):
    npz(tmp_path / "center_single/RAVEN_7_test.npz")
    npz(tmp_path / "center_single/RAVEN_6_train.npz")
    task = Raven(tmp_path)
    assert task.ids() == ["center_single/RAVEN_7"]
    query = task.query("center_single/RAVEN_7")
    assert shown(query.segments) == "Here are eight images:########The following image is:"
    assert query.gold == query.meta["candidates"][5] and len(query.meta["candidates"]) == 8
    # The fifth candidate is the fourteenth picture of the file.
    assert open_picture(query.meta["images"][5].data).getpixel((0, 0)) == (13, 13, 13)
    assert open_picture(query.images[0]).size == (160, 160)


def test_wrong_npz_are_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"holds no \{config\}/RAVEN_\{i\}_test\.npz"):
        Raven(tmp_path)
    path = tmp_path / "RAVEN_1_test.npz"
    for changes, message in (
        ({"target": np.array(8)}, "target is 8, must be 0 to 7"),
        ({"image": np.zeros((9, 4, 4), np.uint8)}, r"image is uint8 \(9, 4, 4\), must be"),
        ({"image": np.array([None] * 16)}, "cannot be read as .npz"),  # a pickle, never run
    ):
        npz(path, **changes)
        with pytest.raises(UserError, match=message):
            Raven(tmp_path).query("RAVEN_1")
    np.savez(path, images=np.zeros(3))
    with pytest.raises(UserError, match=r"no array 'image' \(found images\)"):
        Raven(tmp_path).query("RAVEN_1")
    path.write_bytes(b"half")
    with pytest.raises(UserError, match=r"cannot be read as \.npz"):
        Raven(tmp_path).query("RAVEN_1")


# ----------------------------------------------------------------------------------------------
# ImageNet: the two last classes share a name, and the first begins the second

CLASSES = ("n02129604", "n02129605", "n03773504", "n04008634")
NAMES = ("tiger", "tiger shark", "missile", "missile")


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    for i, wnid in enumerate(CLASSES):
        for j in range(2):
            put(
                tmp_path / "val" / wnid / f"ILSVRC2012_val_{2 * i + j + 1:08}.JPEG",
                "red",
                4 * i + j,
            )
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(NAMES).encode() + b"\r\n")
    return tmp_path


def test_a_class_is_the_place_of_its_wnid_and_a_doubled_name_is_right_for_both(
    imagenet: Path, tmp_path: Path
):
    task = ImageNet(imagenet)
    golds = [task.query(query_id).gold for query_id in task.ids()]
    assert golds == [name for name in NAMES for _ in range(2)]
    request = task.request(Prompt((), task.query(task.ids()[0])))
    assert isinstance(request, GenerateRequest) and request.num_beams == 2
    assert shown(request.prompt.query.segments) == "#The photo of the" and request.choices is None
    sha256 = hashlib.sha256("\n".join(NAMES).encode()).hexdigest()
    assert task.settings["names_sha256"] == sha256
    for says, score in ((None, 100.0), (" missile", 50.0), (" tiger shark.", 0.0), (" Tiger", 0.0)):
        cell = run_cell(task, Oracle(says=says), ALONE, tmp_path / f"out{says}")
        assert cell is not None and cell["score"] == score, says
    assert cell["chance"] == 25.0 and cell["majority"] == 50.0


def test_constrained_names_stand_once_each_with_their_space(imagenet: Path, tmp_path: Path):
    held = make_constrained(imagenet, TaskOptions())
    request = held.request(Prompt((), held.query(held.ids()[0])))
    assert isinstance(request, GenerateRequest) and request.num_beams == 2
    assert request.choices == (" tiger", " tiger shark", " missile")
    ranked = make_constrained(imagenet, TaskOptions(constraint="rank"))
    cell = run_cell(ranked, Oracle(), ALONE, tmp_path / "out")
    assert cell is not None and cell["score"] == 100.0
    assert (held.settings["constraint"], cell["settings"]["constraint"]) == ("trie", "rank")
    with pytest.raises(UserError, match=r"--constraint none: .* ask for imagenet"):
        make_constrained(imagenet, TaskOptions(constraint="none"))


def test_a_flat_folder_goes_through_the_devkits_synsets_and_not_its_numbers(imagenet: Path):
    by_folder = {p.image_path.name: p.label for p in ImageNet(imagenet).data.photos}
    for path in sorted(imagenet.glob("val/*/*")):
        path.rename(imagenet / "val" / path.name)
    for wnid in CLASSES:
        (imagenet / "val" / wnid).rmdir()
    with pytest.raises(UserError, match=r"ground_truth\.txt: no such file; a flat val/ needs the"):
        ImageNet(imagenet)
    data = imagenet / "ILSVRC2012_devkit_t12/data"
    data.mkdir(parents=True)
    numbers = {CLASSES[0]: 3, CLASSES[1]: 1, CLASSES[2]: 4, CLASSES[3]: 2}
    truth = [numbers[wnid] for wnid in CLASSES for _ in range(2)]
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(map(str, truth)))
    lines = [f"{wnid} {number} some_name" for wnid, number in numbers.items()]
    (data / "map_clsloc.txt").write_text("\n".join(lines))
    assert {p.image_path.name: p.label for p in ImageNet(imagenet).data.photos} == by_folder
    (data / "map_clsloc.txt").unlink()
    from scipy.io import savemat

    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")]
    synsets = np.array([(number, wnid, "x") for wnid, number in numbers.items()], kind)
    savemat(data / "meta.mat", {"synsets": synsets})
    assert {p.image_path.name: p.label for p in ImageNet(imagenet).data.photos} == by_folder
    (imagenet / "val/ILSVRC2012_val_00000003.JPEG").unlink()
    with pytest.raises(UserError, match=r"1 of 8 pictures are missing .*--skip-missing"):
        ImageNet(imagenet)
    task = ImageNet(imagenet, TaskOptions(skip_missing=True))
    assert task.problems()["whose picture is missing"] == 1 and len(task.ids()) == 7
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n9\n")
    with pytest.raises(UserError, match="line 2: '9' is no class of the devkit"):
        ImageNet(imagenet)


def test_a_list_that_does_not_fit_the_folders_is_refused(imagenet: Path):
    (imagenet / "names.txt").write_text("\n".join(NAMES[:3]))
    with pytest.raises(UserError, match="4 classes, but 3 names beside it"):
        ImageNet(imagenet)
    (imagenet / "names.txt").write_text("tiger\n\nmissile\nx\n")
    with pytest.raises(UserError, match=r"names\.txt: line 2: is blank"):
        ImageNet(imagenet)
    (imagenet / "names.txt").unlink()
    with pytest.raises(UserError, match=r"names\.txt: no such file .*open_clip"):
        ImageNet(imagenet)
    (imagenet / "classes.json").write_text(json.dumps(NAMES))
    assert ImageNet(imagenet).data.names == NAMES


# ----------------------------------------------------------------------------------------------
# CUB


@pytest.fixture
def cub(tmp_path: Path) -> Path:
    """Two woodpeckers of 21 pictures each and another bird, ids in no order."""
    root = tmp_path / "CUB_200_2011"
    names = ["1.Gull", "187.American_Three_toed_Woodpecker", "192.Downy_Woodpecker"]
    images, labels = [], []
    for i in reversed(range(63)):
        name = names[i % 3]
        images.append(f"{i + 1} {name}/bird_{i}.jpg")
        labels.append(f"{i + 1} {name.partition('.')[0]}")
        put(root / "images" / name / f"bird_{i}.jpg", mark=i)
    root.mkdir(exist_ok=True)
    (root / "images.txt").write_text("\r\n".join(images))
    (root / "image_class_labels.txt").write_text("\n".join(labels))
    classes = [f"{name.partition('.')[0]} {name}" for name in names]
    (root / "classes.txt").write_text("\n".join(classes))
    return tmp_path


def test_the_woodpeckers_are_the_first_twenty_by_image_id(cub: Path, tmp_path: Path):
    task = make_pairs(cub, TaskOptions())
    assert len(task.ids()) == 40
    assert [i for i in task.ids() if "/0/" in i] == [
        f"woodpecker/0/{3 * i + 2:05}" for i in range(20)
    ]
    query = task.query("woodpecker/1/00003")
    assert shown(query.segments) == (
        "#Question:what is the name of woodpecker in the picture, three toed woodpecker or downy "
        "woodpecker? Answer:"
    )
    assert query.gold == "downy woodpecker"
    cell = run_cell(task, Oracle(), ALONE, tmp_path / "out")
    assert cell is not None and (cell["score"], cell["chance"]) == (100.0, 50.0)
    assert cell["extra"]["accuracy_woodpecker"] == 100.0


def test_a_greedy_answer_must_hold_exactly_one_of_the_names(cub: Path, tmp_path: Path):
    task = make_pairs(cub, TaskOptions(constraint="none"))
    query = task.query("woodpecker/1/00003")
    request = task.request(Prompt((), query))
    assert isinstance(request, GenerateRequest)
    assert (request.num_beams, request.choices) == (1, None)
    for answer, score in (
        ("A Downy Woodpecker.", 1.0),
        ("a woodpecker", 0.0),
        ("three toed woodpecker", 0.0),
        ("downy woodpecker, not a three toed woodpecker", 0.0),
    ):
        assert task.judge(answer, query) == score  # type: ignore[union-attr]
    held = make_pairs(cub, TaskOptions(constraint="trie"))
    request = held.request(Prompt((), query))
    assert isinstance(request, GenerateRequest)
    assert request.choices == (" three toed woodpecker", " downy woodpecker")


def test_descriptions_come_from_pairs_jsonl(cub: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"pairs\.jsonl: group woodpecker has no descriptions"):
        make_described(cub, TaskOptions())
    put(cub / "own/a.png")
    put(cub / "own/b.png")
    lines = [
        {"group": "woodpecker", "names": ["toed", "downy"], "descriptions": ["Black.", "White."]},
        {
            "group": "penguin",
            "names": ["gentoo", "royal"],
            "descriptions": ["Red bill.", "Crest."],
            "images": [["own/a.png"], ["own/b.png"]],
        },
    ]
    (cub / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = make_described(cub, TaskOptions())
    assert len(task.ids()) == 42
    assert shown(task.query("penguin/1/000").segments) == (
        "Description of gentoo: Red bill.\nDescription of royal: Crest."
        "#Question:what is the name of penguin in the picture? Answer:"
    )
    (cub / "own/b.png").unlink()
    with pytest.raises(UserError, match=r"1 of 42 pictures are missing \(.*b\.png\)"):
        make_described(cub, TaskOptions())
    kept = make_described(cub, TaskOptions(skip_missing=True))
    assert len(kept.ids()) == 41 and kept.problems() == {"whose picture is missing": 1}
    (cub / "pairs.jsonl").write_text(json.dumps(lines[1] | {"names": ["one"]}))
    with pytest.raises(UserError, match=r'pairs\.jsonl: line 1: "names" must be a list of 2 texts'):
        make_pairs(cub, TaskOptions())


def test_wrong_lines_of_cub_are_named(cub: Path):
    labels = cub / "CUB_200_2011/image_class_labels.txt"
    labels.write_text("1 187\n1 192\n")
    with pytest.raises(UserError, match="line 2: id 1 was already there"):
        make_pairs(cub, TaskOptions())
    labels.write_text("1,187\n")
    with pytest.raises(UserError, match="line 1: is '1,187', must be an id and a value"):
        make_pairs(cub, TaskOptions())
    labels.write_text("2 187\n")
    with pytest.raises(UserError, match=r"1 pictures of 187\.American_Three_toed_Woodpecker, must"):
        make_pairs(cub, TaskOptions())
