"""Short training runs on ranks of their own, and what their losses say."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mllm.doctor.check import Check, failed, measured
from mllm.doctor.world import NUM_STEPS, SAVED_AT
from mllm.launch import run_ranks

# -P: the folder where the user stands may hold another `mllm`.
RANKS = ["-P", "-m", "mllm.doctor.ranks"]
SECONDS = 600.0  # a launch takes about 20 s on idle cores; one that takes this long hangs
ENGINE_LOSSES = "engine_losses.json"
SCORED_ROWS = 2  # of a rank, which the engine scores for the export
LOSS_LIMIT = 1e-5  # nats, over the steps of a run in fp32


@dataclass(frozen=True)
class Leg:
    """One run of a launch; its folder has its name."""

    name: str
    zero_stage: int = 1
    micro_batch_size: int = 1
    resumes: str | None = None  # the leg whose first half it goes on from
    is_scored: bool = False  # its engine also scores rows, for the export


# ZeRO-3 puts DeepSpeed's own linear in the place of torch's for the rest of the process: first, so
# that all legs have it, and a resumed one can be held to the bit.
STAGES = [Leg(f"zero{stage}", stage, is_scored=stage == 3) for stage in (3, 1, 2)]
RESUMED = Leg("resumed", resumes="zero1")


def launch(
    world: Path, out: Path, legs: Sequence[Leg], num_ranks: int, *, is_on_cpu: bool
) -> str | None:
    """Runs `legs` one after the other on `num_ranks` ranks.

    Returns:
        What went wrong, or None.

    Raises:
        KeyboardInterrupt: a signal to this process stopped the ranks.
    """
    out.mkdir(parents=True)
    log = out / "ranks.log"
    arguments = [str(world), str(out), json.dumps([asdict(leg) for leg in legs])]
    environment = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"} if is_on_cpu else {}
    with log.open("w") as output:
        try:
            code = run_ranks(
                [*RANKS, *arguments],
                num_ranks,
                environment=environment,
                output=output,
                seconds=SECONDS,
            )
        except TimeoutError:
            return f"{num_ranks} ranks were not done after {SECONDS:.0f} s"
    if code == 75:
        raise KeyboardInterrupt
    return None if code == 0 else f"a rank ended with {code}: {_last_error(log)}"


def _last_error(log: Path) -> str:
    """The last line that names an error, else the last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line or "error:" in line]
    return (named or lines or ["it said nothing"])[-1][:300]


def check_losses(name: str, run: Path, others: Sequence[Path], limit: float = LOSS_LIMIT) -> Check:
    """The losses of every step of `others`, beside those of `run`."""
    expected = _losses(run)
    if len(expected) != NUM_STEPS:
        return failed(name, f"{run.name} took {len(expected)} of {NUM_STEPS} steps")
    largest = 0.0
    for other in others:
        losses = _losses(other)
        if len(losses) != NUM_STEPS:
            return failed(name, f"{other.name} took {len(losses)} of {NUM_STEPS} steps")
        for step, loss in losses.items():
            difference = abs(loss - expected[step])
            if not math.isfinite(difference):
                return failed(name, f"step {step}: losses {expected[step]} and {loss}")
            largest = max(largest, difference)
    unit = "nats, largest of a step"
    return measured(name, largest, limit, unit, f"{NUM_STEPS} steps")


def check_resumed(name: str, whole: Path, resumed: Path, limit: float) -> Check:
    """A run that went on from its checkpoint, beside the one that nothing interrupted."""
    # Lines of before the checkpoint are the copied ones: with the times at which they were written.
    copied = set(_lines(whole)) & set(_lines(resumed))
    if len(copied) != SAVED_AT:
        return failed(name, f"it went on after step {len(copied)}, the checkpoint has {SAVED_AT}")
    return check_losses(name, whole, [resumed], limit)


def _lines(run_dir: Path) -> list[str]:
    return (run_dir / "metrics.jsonl").read_text().splitlines()


def _losses(run_dir: Path) -> dict[int, float]:
    """By step, those that were applied."""
    steps = map(json.loads, _lines(run_dir))
    return {step["step"]: step["loss"] for step in steps if step["applied"]}
