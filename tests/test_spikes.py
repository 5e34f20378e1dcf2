"""What counts as a loss spike, and how many bad steps in a row are too many."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm.config import TrainConfig
from mllm.spikes import MIN_HISTORY, LossWatch, recent_steps

TRAIN = TrainConfig(spike_sigmas=8.0, spike_window=50, max_skipped_steps=3, max_spikes=4)


def noisy(num: int, *, seed: int = 0, spread: float = 0.2) -> list[float]:
    """Losses that fall as training losses do."""
    draws = np.random.default_rng(seed)
    return [5 - 0.01 * i + float(draws.normal()) * spread for i in range(num)]


def usual(losses: list[float]) -> list[dict[str, Any]]:
    return [{"loss": loss, "applied": True} for loss in losses]


@pytest.mark.parametrize("seed", range(5))
def test_noise_and_falling_losses_are_no_spikes_and_a_jump_is(seed: int) -> None:
    watch = LossWatch(TRAIN)
    assert not any(watch.look(loss, applied=True) for loss in noisy(300, seed=seed))
    problem = watch.look(8.0, applied=True)
    assert problem and problem.startswith("loss spike: 8.000, the median of the last 50 is 2")
    assert watch.look(2.0, applied=True) is None and watch.bad_in_a_row == 0


def test_a_spike_does_not_make_the_next_one_usual() -> None:
    watch = LossWatch(replace(TRAIN, max_spikes=10**9))
    for loss in noisy(100):
        watch.look(loss, applied=True)
    assert all(watch.look(9.0, applied=True) for _ in range(200))
    assert watch.bad_in_a_row == 200


def test_the_first_steps_have_nothing_to_be_held_against() -> None:
    watch = LossWatch(TRAIN)
    assert not any(watch.look(2.0, applied=True) for _ in range(MIN_HISTORY - 1))
    assert watch.look(50.0, applied=True) is None
    assert LossWatch(TRAIN, usual([2.0] * MIN_HISTORY)).look(50.0, applied=True)


def test_even_losses_need_a_rise_worth_the_name() -> None:
    watch = LossWatch(TRAIN, usual([2.0] * 50))
    assert watch.look(2.0999, applied=True) is None and watch.look(2.11, applied=True)


def test_spikes_can_be_switched_off_but_not_what_is_not_finite() -> None:
    watch = LossWatch(replace(TRAIN, spike_sigmas=0.0), usual([2.0] * 50))
    assert watch.look(99.0, applied=True) is None
    assert watch.look(math.nan, applied=False) == "non-finite loss, step skipped"
    assert watch.look(2.0, applied=False) == "step skipped: non-finite gradients"


@given(st.lists(st.sampled_from(["usual", "spike", "skipped"]), max_size=40))
def test_too_many_is_so_many_of_a_kind_one_after_the_other(kinds: list[str]) -> None:
    watch = LossWatch(TRAIN, usual([2.0] * 50))
    for place, kind in enumerate(kinds):
        watch.look(20.0 if kind == "spike" else 2.0, applied=kind != "skipped")
        past = "".join(kind[1] for kind in kinds[: place + 1])  # u-s-ual, s-p-ike, s-k-ipped
        bad = past[len(past.rstrip("kp")) :]
        too_many = bad.endswith("k" * 3) or bad.endswith("p" * 4) or len(bad) >= 7
        assert bool(watch.too_many()) == too_many
        assert watch.bad_in_a_row == len(bad)
        assert watch.first_harm == (bad.index("p") if "p" in bad else None)


@pytest.mark.parametrize("tail", [[], ["spike"], ["skip", "spike", "spike"], ["spike", "skip"]])
def test_a_resumed_run_knows_the_losses_and_bad_steps_before_it(
    tmp_path: Path, tail: list[str]
) -> None:
    path = tmp_path / "metrics.jsonl"
    assert recent_steps(path, 5) == []
    whole = LossWatch(TRAIN)
    lines: list[dict[str, Any]] = []
    kinds = ["usual"] * 30 + ["spike", "usual", "skip"] + ["usual"] * 40 + tail
    for loss, kind in zip(noisy(len(kinds)), kinds, strict=True):
        value = {"usual": loss, "spike": 99.0, "skip": math.nan}[kind]
        applied = kind != "skip"
        problem = whole.look(value, applied=applied)
        assert bool(problem) == (kind != "usual")
        line = {"loss": None if math.isnan(value) else value, "applied": applied}
        lines.append(line | ({"problem": problem} if problem else {}))
    lines.insert(5, {"validation": {"text": 3.0}})
    text = "".join(json.dumps({"step": i, **line}) + "\n" for i, line in enumerate(lines))
    path.write_text(text + '{"step": 99, "lo')
    resumed = LossWatch(TRAIN, recent_steps(path, TRAIN.spike_window))
    for name in ("bad_in_a_row", "first_harm", "_skipped_in_a_row", "_spikes_in_a_row", "_usual"):
        assert getattr(resumed, name) == getattr(whole, name), name
    assert whole.look(7.0, applied=True) == resumed.look(7.0, applied=True) is not None
