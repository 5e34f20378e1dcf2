"""The in-context task: what its prompts show, and that its figures tell who learns from them."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from corpora.document import ImageSegment
from corpora.incontext.build import SMALL, build_incontext
from evals.api import CandidateScore, Prompt, RankRequest, Separator
from evals.shots import Selection, build_prompts
from evals.tasks.incontext import InContext
from mllm.errors import UserError

SEPARATOR: Separator = "eos"


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> InContext:
    out = tmp_path_factory.mktemp("incontext") / "corpus"
    build_incontext(out, small=True)
    return InContext(out)


def prompts(task: InContext, k: int, how: str = "random", seed: int = 0) -> list[Prompt]:
    return build_prompts(
        [task.query(query_id) for query_id in task.ids()],
        task.support,
        seed=seed,
        task=task.name,
        split=task.split,
        num_shots=k,
        separator=SEPARATOR,
        selection=Selection(how),
    )


class Oracle:
    """Knows every picture's class and answers with what the shots call it; else the first label."""

    def __init__(self, task: InContext) -> None:
        shots, queries = task.support_source, task.source
        documents = [shots.document(i) for i in shots.ids()] + [
            queries.document(i) for i in queries.ids()
        ]
        self.classes = {d.images[0]: d.meta["class"] for d in documents}

    def accuracy(self, task: InContext, asked: Sequence[Prompt]) -> float:
        scores = []
        for prompt in asked:
            request = task.request(prompt)
            assert isinstance(request, RankRequest)
            known = {self.classes[shot.images[0]]: shot.answer for shot in prompt.shots}
            named = known.get(self.classes[prompt.query.images[0]], request.candidates[0])
            answers = [
                CandidateScore(c, 0.0 if c == named else -9.0, 4, 3, 3, None)
                for c in request.candidates
            ]
            scores.append(task.row(prompt.query, [answers])["score"])
        return sum(scores) / len(scores)


def test_shots_are_the_trials_own_nested_and_show_each_class_in_turn(task: InContext) -> None:
    whole = prompts(task, 8)
    for k in (2, 4):
        for few, many in zip(prompts(task, k), whole, strict=True):
            assert [s.id for s in few.shots] == [s.id for s in many.shots][:k]
    for prompt in whole:
        labels = [shot.answer.strip() for shot in prompt.shots]
        assert set(labels[:4]) == set(labels[4:]) == set(prompt.query.meta["candidates"])
        assert all(shot.id.rpartition("-")[0] == prompt.query.id for shot in prompt.shots)
    assert prompts(task, 8, seed=1) != whole


def test_more_shots_than_a_trial_has_are_refused(task: InContext) -> None:
    with pytest.raises(UserError, match="only 8 usable"):
        prompts(task, 9)
    with pytest.raises(UserError, match="random or balanced"):
        prompts(task, 4, how="fixed")


def test_permuted_shots_keep_pictures_and_labels_and_break_the_mapping(task: InContext) -> None:
    moved = 0
    for number, prompt in enumerate(prompts(task, 8)):
        changed = task.permuted(prompt, f"{number}")
        assert [s.question for s in changed.shots] == [s.question for s in prompt.shots]
        assert sorted(s.answer for s in changed.shots) == sorted(s.answer for s in prompt.shots)
        moved += changed != prompt
    assert moved > 0.9 * SMALL.trials


def test_who_reads_the_shots_is_right_and_permuted_shots_bring_down_to_chance(
    task: InContext,
) -> None:
    oracle = Oracle(task)
    assert oracle.accuracy(task, prompts(task, 4)) == oracle.accuracy(task, prompts(task, 8)) == 1
    assert oracle.accuracy(task, prompts(task, 0)) < 0.6  # the first label: 25 % of 16 trials
    fallen = [
        oracle.accuracy(
            task, [task.permuted(p, f"{seed} {p.query.id}") for p in prompts(task, 4, seed=seed)]
        )
        for seed in range(20)
    ]
    assert sum(fallen) / len(fallen) == pytest.approx(0.25, abs=0.08)  # 320 trials: 3 errors


def test_a_missing_corpus_names_the_command_that_builds_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mllm corpora incontext --out"):
        InContext(tmp_path)


def test_a_query_is_a_picture_and_the_prompt_and_never_its_label(task: InContext) -> None:
    for query_id in task.ids():
        query = task.query(query_id)
        assert len([s for s in query.segments if isinstance(s, ImageSegment)]) == 1
        assert query.gold in query.meta["candidates"]
        assert all(query.gold not in getattr(s, "text", "") for s in query.segments)
