"""What saving costs the loop: how long it is held up, and throughput with a save every 50 steps.

The demo's model with small batches, in one run that saves every 100 steps: its windows of 50 steps
hold a save and none in turn, so that a slow minute hits both. The window after a save has the time
that the loop was held up and all that the writing thread takes.
"""

import json
import statistics
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from mllm import dist
from mllm.bench import machine
from mllm.bench._twins import DEMO_CONFIG
from mllm.bench.wait import has_demo_corpus, make_corpus
from mllm.config import load_config
from mllm.engine import init_distributed
from mllm.train import train

WINDOW = 50  # steps
PAIRS = 5  # of a window with a save and one without
MAX_BLOCKED, MIN_THROUGHPUT = 0.20, 0.95


def run() -> dict[str, Any]:
    dist.set_up_environment()
    init_distributed()
    num_steps = 2 * WINDOW * (PAIRS + 1) + WINDOW  # a pair more, in which memory is found
    with tempfile.TemporaryDirectory() as place:
        run_dir = Path(place) / "run"
        overrides = [
            f"run_dir={run_dir}",
            "init_from=null",
            "data.validation=[]",
            "data.num_workers=0",
            f"train.num_steps={num_steps}",
            "train.micro_batch_size=2",
            "train.global_batch_size=2",
            f"train.checkpoint_every={2 * WINDOW}",
            f"train.validate_every={num_steps}",
        ]
        if not has_demo_corpus():
            overrides += make_corpus(Path(place))
        train(load_config(DEMO_CONFIG, overrides))
        newest = max((run_dir / "checkpoints").glob("step-*"))
        num_bytes = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
        steps = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    ends = [steps[number - 1]["time"] for number in range(WINDOW, num_steps + 1, WINDOW)]
    windows = [end - begin for begin, end in pairwise(ends)]
    # Window 0 is from step 50 to 100, so that odd ones follow a save; the first finds its buffers.
    with_save, without = windows[3::2], windows[2::2]
    blocked = [step["checkpoint_seconds"] for step in steps if step["checkpoint_seconds"]]
    step_seconds = statistics.median(step["step_seconds"] for step in steps)
    return {
        **machine.describe("torch", "deepspeed"),
        "checkpoint_bytes": num_bytes,
        "step_seconds": step_seconds,
        "first_blocked_seconds": blocked[0],
        "blocked_seconds": statistics.median(blocked[1:]),
        "blocked_share_of_step": statistics.median(blocked[1:]) / step_seconds,
        "window_seconds": {"with a save": with_save, "without": without},
        "throughput": statistics.median(without) / statistics.median(with_save),
    }


def lines(result: dict[str, Any]) -> list[str]:
    return [
        f"a checkpoint of {result['checkpoint_bytes'] / 1e6:.0f} MB holds the loop up for "
        f"{result['blocked_seconds'] * 1e3:.0f} ms, {result['blocked_share_of_step']:.1%} of a "
        f"step of {result['step_seconds'] * 1e3:.0f} ms (the first for "
        f"{result['first_blocked_seconds'] * 1e3:.0f} ms); target {MAX_BLOCKED:.0%}",
        f"throughput with a save every {WINDOW} steps: {result['throughput']:.1%} of that without; "
        f"target {MIN_THROUGHPUT:.0%}",
    ]
