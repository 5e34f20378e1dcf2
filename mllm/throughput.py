"""How fast a step was and which rank held it up: model FLOPs, busy time, memory."""

import resource
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mllm import dist
from mllm.devices import peak_of
from mllm.engine import Engine


class StepMeter:
    """Measures one step after the other on every rank; rank 0's metrics.jsonl has the whole."""

    def __init__(self, engine: Engine):
        dtype = next(engine.module.parameters()).dtype
        # Of rank 0's device; only rank 0 writes what follows from it.
        self._peak = peak_of(dist.device(), dtype) if dist.rank() == 0 else 1.0
        self._is_cuda = dist.device().type == "cuda"
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._began = self._data_wait = self._saving = self._forward = 0.0

    def start(self, data_wait_seconds: float, checkpoint_seconds: float) -> None:
        """A step begins, for whose data and for a checkpoint before it the loop has waited."""
        self._data_wait, self._saving = data_wait_seconds, checkpoint_seconds
        self._began, self._forward = time.monotonic(), 0.0

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Around each forward pass: under ZeRO 0 to 2 a rank waits for no other in it."""
        if self._is_cuda:  # kernels run after the call; `of_this_rank` waits for them
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            yield
            last.record()
            self._events.append((first, last))
        else:
            began = time.perf_counter()
            yield
            self._forward += time.perf_counter() - began

    def of_this_rank(self) -> list[float]:
        """What the others cannot know, to be summed over ranks: each fills its own places."""
        for first, last in self._events:
            last.synchronize()
            self._forward += first.elapsed_time(last) / 1e3
        self._events = []
        shares = [0.0] * (2 * dist.world_size())
        shares[dist.rank() :: dist.world_size()] = [self._data_wait + self._forward, _memory()]
        return shares

    def finish(self, values: dict[str, Any], summed: list[float]) -> dict[str, Any]:
        """What a step's line in metrics.jsonl says of its speed.

        Args:
            values: the line so far.
            summed: `of_this_rank` over all ranks.
        """
        seconds = time.monotonic() - self._began
        busy, memory = summed[: dist.world_size()], summed[dist.world_size() :]
        return {
            "data_wait_seconds": round(self._data_wait, 4),
            "step_seconds": round(seconds, 4),
            "checkpoint_seconds": self._saving,  # before the step
            "time": round(time.time(), 3),
            **rates(values, seconds + self._data_wait + self._saving, self._peak),
            # The longest in its forward passes and on its data: the others wait for it.
            "slowest_rank": max(range(len(busy)), key=busy.__getitem__),
            "slowest_rank_seconds": round(max(busy), 4),
            "median_rank_seconds": round(statistics.median(busy), 4),
            "memory_gib": round(max(memory) / 2**30, 3),
        }


def rates(values: dict[str, Any], seconds: float, peak: float) -> dict[str, float]:
    """Positions and pictures a second over all ranks; MFU where operations are counted.

    Args:
        values: one line of metrics.jsonl.
        seconds: that the step took, its waits for data and a checkpoint included.
        peak: operations per second of one rank's device.
    """
    found = {
        f"{count}_per_second": round(values[count] / seconds, 1)
        for count in ("tokens", "useful_tokens", "images")
        if count in values
    }
    if "flops" in values:
        found["mfu"] = round(values["flops"] / (seconds * dist.world_size() * peak), 4)
    return found


def _memory() -> float:
    """Most bytes that this rank has held: of the GPU's allocator, or of the process."""
    if dist.device().type == "cuda":
        return float(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
