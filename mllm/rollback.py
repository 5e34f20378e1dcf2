"""Going back to the last checkpoint before a bad stretch and past it on other data.

What was left out is in `rollbacks.json` of the run folder, and holds for every later start of the
run, whatever `data.exclude_steps` says.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mllm import dist
from mllm.checkpoint import TrainState, resume
from mllm.checkpoint_files import checkpoints, problem_of
from mllm.checkpoint_store import take_back
from mllm.config import Config
from mllm.engine import Engine
from mllm.errors import UserError
from mllm.files import write_json
from mllm.stream.order import stream_step
from mllm.stream.state import Resumable

ROLLBACKS = "rollbacks.json"


@dataclass(frozen=True)
class BadStretch:
    """Steps of metrics.jsonl, from the first bad one to the last, and what is wrong with them."""

    first_step: int
    first_harm: int | None  # the first that moved the weights; None: all were skipped
    last_step: int
    reason: str


def with_rollbacks(config: Config, run_dir: Path) -> Config:
    """The config with the windows that earlier rollbacks of the run left out."""
    windows = [entry["left_out"] for entry in read_rollbacks(run_dir)]
    windows = [window for window in windows if window not in config.data.exclude_steps]
    data = replace(config.data, exclude_steps=[*config.data.exclude_steps, *windows])
    return replace(config, data=data)


def roll_back(
    config: Config, engine: Engine, stream: Resumable, bad: BadStretch
) -> tuple[TrainState, str]:
    """Loads the last checkpoint before the bad stretch and takes it out of the stream.

    All ranks call it. Checkpoints of the stretch itself are renamed to `bad-step-...`.

    Returns:
        The state to go on from, and what was done, in a line.

    Raises:
        UserError: the run has been rolled back often enough, or there is nothing to go back to.
    """
    run_dir = Path(config.run_dir)
    problem, point, entry = None, None, None
    if dist.rank() == 0:
        done = read_rollbacks(run_dir)
        point = _last_good(run_dir, bad)
        where = f"{run_dir}/ledger.jsonl names their samples"
        advice = "lower train.peak_lr, leave their steps out by data.exclude_steps, or look at them"
        if len(done) >= config.train.max_rollbacks:
            before = f" after {len(done)} rollbacks (train.max_rollbacks)" if done else ""
            problem = f"{bad.reason}{before}; {where}; {advice}"
        elif point is None:
            problem = f"{bad.reason}, and no checkpoint before step {bad.first_step}; {where}; "
            problem += advice
        else:
            windows = stream.state.excluded_steps
            back_to = int(point.name.removeprefix("step-"))
            first_left = max(back_to, bad.first_step - 1)  # training steps; as `--steps` has them
            first, last = (stream_step(s, windows) for s in (first_left, bad.last_step - 1))
            entry = {
                "reason": bad.reason,
                "first_step": bad.first_step,
                "last_step": bad.last_step,
                "back_to_step": back_to,
                "left_out": f"{first}:{last + 1}",
            }
            # In this order: killed in between, the run goes on into the bad stretch once more.
            for folder in reversed(checkpoints(run_dir / "checkpoints")):
                if folder.name > point.name:
                    folder.rename(folder.with_name(f"bad-{folder.name}"))
            if config.train.checkpoint_store:
                problem = _take_back(config.train.checkpoint_store, back_to)
            if problem is None:
                write_json(run_dir / ROLLBACKS, [*done, entry])
    problem, point, entry = dist.broadcast_object((problem, point, entry))
    if problem is not None:
        raise UserError(problem)
    state = resume(point, engine)
    stream.leave_out(entry["left_out"], state.step)
    return state, (
        f"rolled back to step {state.step}: {bad.reason}; stream steps {entry['left_out']} are "
        f"left out from here on"
    )


def _last_good(run_dir: Path, bad: BadStretch) -> Path | None:
    """The newest checkpoint without harm: skipped steps leave the weights as they were."""
    stop = bad.last_step if bad.first_harm is None else bad.first_harm
    for folder in reversed(checkpoints(run_dir / "checkpoints")):
        if int(folder.name.removeprefix("step-")) < stop and not problem_of(folder):
            return folder
    return None


def _take_back(store: str, step: int) -> str | None:
    try:
        take_back(store, step)
    except (OSError, UserError) as error:
        return (
            f"train.checkpoint_store {store}: its checkpoints after step {step} could not be taken "
            f"back ({error}), so that the run could not be rolled back; mend the store and go on"
        )
    return None


def read_rollbacks(run_dir: Path) -> list[dict[str, Any]]:
    """One entry a rollback. UserError where the file is damaged."""
    path = run_dir / ROLLBACKS
    if not path.exists():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return [{**entry, "left_out": str(entry["left_out"])} for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); bring it back: it says which data the run left out"
        ) from None
