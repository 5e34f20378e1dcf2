import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from corpora.document import TextSegment
from evals.api import (
    CandidateScore,
    Generated,
    GenerateRequest,
    Prompt,
    RankRequest,
    Task,
    VariantRequest,
)
from evals.asking import ask
from evals.data import DataPaths
from evals.options import TaskOptions
from evals.page.examples import Prompter
from evals.rows import whole_rows
from evals.run import CellOptions, run_cell
from evals.shots import Selection, build_prompts, draw_shots
from evals.tasks import TASKS, make_task
from evals.tasks.local import LOCAL_SETS
from evals.tasks.nway import Nway2, Nway5
from evals.tasks.page_qa import INSTRUCTION, Pages, longest_beginning
from evals.tasks.raven_drawn import RavenDrawn
from evals.tasks.sentiment_drawn import SentimentCot
from mllm.errors import UserError
from tests.evals.conftest import FakeModel, colour_of
from tests.evals.local_sets import write_local_sets

OPTIONS = CellOptions(num_shots=0, batch_size=5)


@pytest.fixture(scope="module")
def local_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("local")
    write_local_sets(root)
    return root


class Seer(FakeModel):
    """Sees colours, and the colours of cells and shots."""

    max_positions = seq_len = 1500

    def loglikelihood(self, requests: Sequence) -> list[list[CandidateScore]]:
        self._ask([request.prompt.query.id for request in requests])
        return [self._rank(request) for request in requests]

    def _rank(self, request: RankRequest | VariantRequest) -> list[CandidateScore]:
        if isinstance(request, VariantRequest):
            cells = [colour_of(data) for data in request.prompt.query.images]
            seen = [colour_of(ending[0].data) for ending in request.endings]  # type: ignore[union-attr]
            return [scored(" Yes", colour in cells) for colour in seen]
        images = request.prompt.query.images
        colour = colour_of(images[0]) if images else "nothing"
        said = [
            s.answer for s in request.prompt.shots if s.images and colour_of(s.images[0]) == colour
        ]
        return [scored(text, colour in text or f"{text}." in said) for text in request.candidates]


def scored(text: str, is_right: bool) -> CandidateScore:
    return CandidateScore(text, -1.0 if is_right else -30.0, 3, len(text) - 1, len(text) - 1)


def text_of(prompt: Prompt) -> str:
    """All that is asked, pictures as `#`."""
    parts = [*(shot.segments for shot in prompt.shots), prompt.query.segments]
    return "|".join(
        "".join(s.text if isinstance(s, TextSegment) else "#" for s in part) for part in parts
    )


def make(name: str, folder: Path, **options) -> Task:
    return LOCAL_SETS[name].make(folder, TaskOptions(**options))


def prompts_of(task: Task, num_shots: int, seed: int = 0) -> list[Prompt]:
    queries = [task.query(query_id) for query_id in sorted(task.ids())]
    return build_prompts(
        queries,
        task.support,
        seed=seed,
        task=task.name,
        split=task.split,
        num_shots=num_shots,
        separator="eos",
    )


@pytest.mark.parametrize(
    ("name", "prompt", "answer"),
    [
        ("flags", "#An image of the flag of", "red"),
        ("sentiment", "#Question: what is the sentiment of the opinion? Answer:", "positive"),
        ("raven_drawn", "Here are eight images:########The following image is:", "image 0"),
        (
            "pages",
            f"#{INSTRUCTION} Context: Redland Land Area: 12 sq km State Capital: Rouge "
            "Q: What is the capital of Redland? A:",
            "a red square",
        ),
        ("pages_no_text", f"#{INSTRUCTION} Q: What is the capital of Redland? A:", "a red square"),
        (
            "digits",
            "#Question:what is the name of digit in the picture, red, green, blue, yellow, black, "
            "grey, pink or brown? Answer:",
            "red",
        ),
        (
            "emoji_groups",
            "#Question:what is the name of object in the picture, red or green? Answer:",
            "red",
        ),
        (
            "emoji_groups_described",
            "Description of red: warm, loud\nDescription of green: cool\n"
            "#Question:what is the name of object in the picture? Answer:",
            "red",
        ),
        ("socialiqa", "Quinn 0 ran. Question: What will Quinn want to do next? Answer:", "rest"),
        ("quartz", "Question: Does ice 0 melt? Answer:", "hot"),
        ("nway2", "#An image of", "a bovzim"),
    ],
)
def test_the_literal_prompts(name: str, prompt: str, answer: str, local_dir: Path):
    task = make(name, local_dir)
    query = task.query(sorted(task.ids())[0])
    assert text_of(Prompt((), query)) == prompt and query.gold == answer


def test_the_literal_shots(local_dir: Path):
    shown = {
        name: text_of(prompts_of(make(name, local_dir), 1)[0])
        for name in LOCAL_SETS
        if LOCAL_SETS[name].takes_shots
    }
    assert "the flag of" in shown["flags"] and shown["flags"].split("|")[0].endswith(".")
    assert shown["flag_caption"].split("|")[0].startswith("#An image of the flag of ")
    assert ": all " in shown["flag_caption"].split("|")[0]
    assert shown["sentiment"].split("|")[0].split()[-1] in ("positive", "negative")
    assert "Context: Redland" in shown["pages"].split("|")[0]
    assert shown["quartz"].split("|")[0].endswith(" hot")
    assert shown["nway2"].split("|")[0].endswith("ovzim.")


def test_one_tunes_on_development_and_shows_the_folders_name(local_dir: Path):
    splits = {"development": "development", "final": "test", "new_concepts": "test"}
    for split, folder in splits.items():
        task = make("flags", local_dir, split=split)
        assert task.folder == f"flags_{folder}" and task.ids()[0].startswith(f"flags-{folder}")


def test_a_sentence_that_the_answer_ends_stands_as_it_is(local_dir: Path):
    task = make("quartz", local_dir)
    assert text_of(Prompt((), task.query("quartz-test-01"))) == "Ice 1 melts when it is"


@pytest.mark.parametrize("name", LOCAL_SETS)
def test_every_task_runs_and_says_how_well(name: str, local_dir: Path, tmp_path: Path):
    info = LOCAL_SETS[name]
    cell = run_cell(make(name, local_dir), Seer(), OPTIONS, tmp_path)
    assert cell["n"] == (8 if name == "flag_caption" else 12) and cell["score"] is not None
    assert cell["split"] == "test"
    if name in ("flags", "raven_drawn", "digits", "emoji_groups", "emoji_groups_described"):
        assert cell["score"] == 100.0 > cell["blind"]["score"]
    if info.takes_shots:
        few = replace(OPTIONS, num_shots=2 if name != "nway5" else 5, limit=6)
        cell = run_cell(make(name, local_dir), Seer(), few, tmp_path)
        assert "permuted" in cell["controls"]
        prompter = Prompter(make(name, local_dir), cell["settings"])
        for row in whole_rows(tmp_path / cell["per_seed"][0]["samples"]):
            prompt = prompter.prompt(row)  # as the page shows it
            assert prompt is not None and [shot.id for shot in prompt.shots] == row["shots"]
        if name.startswith("nway"):
            assert cell["score"] == 100.0 and cell["n"] == 6


def test_raven_without_its_cells_is_a_guess_and_so_is_a_vote(local_dir: Path, tmp_path: Path):
    cell = run_cell(RavenDrawn(local_dir), Seer(), OPTIONS, tmp_path)
    assert cell["chance"] == cell["baselines"]["vote of the candidates"] == 12.5
    # Nothing is seen, all tie, the first is taken: right for two of twelve.
    assert cell["controls"]["no_context"]["score"] == pytest.approx(100 / 6, abs=1e-3)
    path = tmp_path / "raven_drawn_test/k0/seed0/samples.jsonl"
    row = json.loads(path.read_text().split("\n")[0])
    assert row["gold"] == "image 0" and [c["text"] for c in row["candidates"]][7] == "image 7"
    # 8 cells and a candidate of (4 latents + 2), three texts, <s> and " Yes" fit 512 easily.
    assert row["n_prompt_tokens"] == 1 + 8 * 6 + 22 + 23
    longest = run_cell(RavenDrawn(local_dir), short(129), OPTIONS, tmp_path / "fits")
    assert longest["n"] == 12
    with pytest.raises(UserError, match="does not fit"):
        run_cell(RavenDrawn(local_dir), short(128 - 11), OPTIONS, tmp_path / "not")


def short(positions: int) -> Seer:
    model = Seer()
    model.max_positions = positions
    return model


def test_a_vote_that_gives_the_answer_away_shows(local_dir: Path, fake: FakeModel):
    task = RavenDrawn(local_dir)
    queries = [task.query(query_id) for query_id in task.ids()]
    for query in queries:
        query.meta["vote"] = [3 + (name == query.gold) for name in query.meta["candidates"]]
    assert task.baselines(queries, fake).others == {"vote of the candidates": 100.0}


def test_a_chain_of_thought_asks_twice_and_keeps_what_was_said(local_dir: Path, tmp_path: Path):
    class Thinker(Seer):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[str] = []

        def generate_until(self, requests: Sequence[GenerateRequest]) -> list[Generated]:
            assert all(r.max_new_tokens == 128 and r.num_beams == 1 for r in requests)
            assert text_of(requests[0].prompt) == "#Introduce this picture in detail:"
            empty = [r.prompt.query.id.endswith("11") for r in requests]
            return [Generated("" if e else " a bad\n  film", 3, e) for e in empty]

        def _rank(self, request: RankRequest) -> list[CandidateScore]:  # type: ignore[override]
            self.seen.append(text_of(request.prompt))
            return [
                scored(text, "bad" in self.seen[-1] and "neg" in text)
                for text in request.candidates
            ]

    model = Thinker()
    cell = run_cell(SentimentCot(local_dir), model, replace(OPTIONS, controls=()), tmp_path)
    question = "Question: what is the sentiment of the opinion? Answer:"
    assert model.seen == [f"#a bad film {question}"] * 11 + [f"#{question}"]
    assert cell["extra"]["num_empty_rationales"] == cell["extra"]["num_capped_rationales"] == 1
    path = tmp_path / "sentiment_cot_test/k0/seed0/samples.jsonl"
    row = json.loads(path.read_text().split("\n")[0])
    assert row["rationale"] == "a bad film" and row["raw"] == " a bad\n  film"
    assert row["answer"] == "negative" and cell["score"] == pytest.approx(100 * 5 / 12, abs=1e-3)


def test_a_chain_of_thought_needs_room_for_its_second_stage(local_dir: Path, tmp_path: Path):
    options = replace(OPTIONS, controls=())
    # <s>, the picture, the question (whose place the longer of both stages takes), the
    # description's cap, and after it the label.
    question = len("Question: what is the sentiment of the opinion? Answer:")
    needed = 1 + 6 + question + 128 + len(" positive")
    assert run_cell(SentimentCot(local_dir), short(needed), options, tmp_path / "fits")
    with pytest.raises(UserError, match="does not fit"):
        run_cell(SentimentCot(local_dir), short(needed - 1), options, tmp_path / "not")


def test_a_page_is_cut_at_its_end_and_counted(local_dir: Path, tmp_path: Path):
    whole = run_cell(Pages(local_dir), Seer(), OPTIONS, tmp_path / "whole")
    assert whole["extra"]["num_truncated"] == 0
    # The fake says the colour, which half of the questions about three red pages ask for; what it
    # says of three blue pages has one word of two in common with the answer.
    assert whole["score"] == 25.0 and whole["extra"]["f1"] == 37.5
    model = short(
        1
        + 6
        + len(f"{INSTRUCTION} Context: Redland Land Area: 12 Q: What is the capital of Redland? A:")
        + 20
    )
    cut = run_cell(Pages(local_dir), model, OPTIONS, tmp_path / "cut")
    assert cut["extra"]["num_truncated"] == 12
    prompt = Prompt((), Pages(local_dir).query("pages-test-00"))
    fitted = Pages(local_dir).fitted(prompt, model)
    assert "Area: 12 Q: What is the capital" in text_of(fitted)
    assert fitted.query.images == prompt.query.images
    with pytest.raises(UserError, match="does not fit"):
        run_cell(Pages(local_dir), short(100), OPTIONS, tmp_path / "none")


def test_the_longest_beginning_is_the_longest_that_fits():
    text = "one two three four"
    for length in range(25):
        found = longest_beginning(text, lambda part, length=length: len(part) <= length)
        assert len(found) <= length and text.startswith(found)
        rest = text[len(found) :].split()
        # The whole text was known not to fit.
        assert len(rest) == 1 or len(f"{found} {rest[0]}".strip()) > length


def test_errors_are_clustered_by_page(local_dir: Path, tmp_path: Path):
    run_cell(Pages(local_dir), Seer(), replace(OPTIONS, controls=()), tmp_path)
    path = tmp_path / "pages_test/k0/seed0/samples.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(Counter(row["pictures"] for row in rows).values()) == [2] * 6


# ----------------------------------------------------------------------------------------------
# Episodes that bring their own shots


def test_rounds_are_nested_and_show_each_label_once(local_dir: Path):
    for task, ways in ((Nway2(local_dir), 2), (Nway5(local_dir), 5)):
        few, many = prompts_of(task, ways), prompts_of(task, 4 * ways)
        for short_one, long_one in zip(few, many, strict=True):
            assert long_one.shots[:ways] == short_one.shots
            for turn in range(4):
                labels = {shot.answer for shot in long_one.shots[ways * turn : ways * (turn + 1)]}
                assert labels == {f" {name}." for name in short_one.query.meta["candidates"]}
            ids = {shot.id.split("/")[0] for shot in long_one.shots}
            assert ids == {long_one.query.id}
    assert prompts_of(Nway5(local_dir), 5) != prompts_of(Nway5(local_dir), 5, seed=1)


def test_an_exemplar_with_the_querys_picture_is_never_shown(local_dir: Path):
    """The fault is planted: the first exemplar's picture becomes the query's."""
    task = Nway2(local_dir)
    query = task.query("nway-test-00")
    support = task.support().own(query)  # type: ignore[misc]
    leaked = support.read("nway-test-00/00")
    query = replace(query, segments=(leaked.question[0], TextSegment("An image of")))
    shots = draw_shots(query, support, seed=0, task="nway2", split="test", num_shots=7)
    assert leaked.id not in {shot.id for shot in shots} and len(shots) == 7
    with pytest.raises(UserError, match="only 7 usable exemplars among 8"):
        draw_shots(query, support, seed=0, task="nway2", split="test", num_shots=8)


def test_permuted_shots_keep_pictures_and_labels_but_not_who_has_which(local_dir: Path):
    task = Nway5(local_dir)
    moved = 0
    for prompt in prompts_of(task, 10):
        changed = task.permuted(prompt, f"0\n{prompt.query.id}")
        assert [s.images for s in changed.shots] == [s.images for s in prompt.shots]
        answers = [s.answer for s in changed.shots]
        assert Counter(answers) == Counter(s.answer for s in prompt.shots)
        moved += sum(a != s.answer for a, s in zip(answers, prompt.shots, strict=True))
        assert changed == task.permuted(prompt, f"0\n{prompt.query.id}")
    assert moved == pytest.approx(12 * 10 * 8 / 9, rel=0.15)  # one other shot of nine has the label


def test_a_model_that_follows_its_shots_falls_with_permuted_labels(local_dir: Path):
    """Two shots keep their labels or change them: for half of many keys each."""
    task = Nway2(local_dir)
    prompt = prompts_of(task, 2)[0]
    changed = [task.permuted(prompt, str(key)) for key in range(400)]
    hits = [task.row(prompt.query, scores)["score"] for scores in ask(task, Seer(), changed)]
    assert sum(hits) / len(hits) == pytest.approx(0.5, abs=0.07)  # 2.8 standard errors


def test_shots_by_likeness_are_refused_where_episodes_bring_their_own(
    local_dir: Path, tmp_path: Path
):
    few = replace(OPTIONS, num_shots=2, selection=Selection("rices_image"))
    with pytest.raises(UserError, match="has exemplars of its own"):
        run_cell(Nway2(local_dir), Seer(), few, tmp_path)
    balanced = replace(OPTIONS, num_shots=2, selection=Selection("balanced"))
    assert run_cell(Nway2(local_dir), Seer(), balanced, tmp_path)["score"] == 100.0


# ----------------------------------------------------------------------------------------------
# Registry


def test_a_task_whose_set_is_missing_says_how_to_build_it(data_dir: Path, local_dir: Path):
    paths = DataPaths({"demo": data_dir}, frozenset({"demo"}))
    for name in LOCAL_SETS:
        with pytest.raises(UserError, match="no such corpus; build it with `mllm corpora demo"):
            make_task(name, paths, TaskOptions())
    for name in LOCAL_SETS:
        task = make_task(name, replace(paths, folders={"demo": local_dir}), TaskOptions())
        assert task.name == name in TASKS and task.settings and len(task.ids()) > 1


def test_tasks_that_take_no_shots_say_so(local_dir: Path):
    silent = [name for name, info in LOCAL_SETS.items() if not info.takes_shots]
    assert len(silent) == 4
    for name in silent:
        task = make(name, local_dir)
        with pytest.raises(UserError, match="has no shots"):
            task.support()
