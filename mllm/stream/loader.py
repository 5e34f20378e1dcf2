"""Rows to this rank's batches, a few steps ahead of the loop.

`num_workers` processes compose whole steps and hand them over through shared memory (workers.py).
With 0, one thread of the trainer's own process does: reading and decoding pictures leave the
interpreter lock, so on a machine of few cores, and in tests, it does as well without the memory
and the start of further processes.
"""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from mllm.stream.parcel import pack
from mllm.stream.workers import Workers, compose

FOREVER = 1 << 60  # steps


class Loader:
    """Iterates `(step, [batch per micro-step])` of one rank, from `start_step` on.

    An error in a worker is raised in the loop at the step it belongs to, with the worker's
    traceback; a worker that was killed is an error that names it.

    Args:
        stream: a TokenStream or PairStream.
        num_workers: processes; 0: one thread.
        prefetch_steps: steps composed ahead, at most (a worker has at least one); bounds memory.
        end_step: the first step not to compose; None goes on for ever.
        pin_memory: hand batches out in page-locked memory, for an accelerator.

    Attributes:
        data_wait_seconds: how long the loop waited for the last item.
    """

    def __init__(
        self,
        stream: Any,
        *,
        rank: int,
        world_size: int,
        micro_batch_size: int,
        start_step: int = 0,
        end_step: int | None = None,
        num_workers: int = 0,
        prefetch_steps: int = 4,
        pin_memory: bool = False,
    ) -> None:
        split = {"rank": rank, "world_size": world_size, "micro_batch_size": micro_batch_size}
        stream.grad_accum_steps(world_size, micro_batch_size)  # refuses sizes that do not divide
        self.data_wait_seconds = 0.0
        self._steps = iter(range(start_step, FOREVER if end_step is None else end_step))
        steps = range(start_step, FOREVER if end_step is None else end_step)
        self._producer: Workers | _Thread
        if num_workers and steps:
            self._producer = Workers(
                stream,
                split,
                steps,
                num_workers=num_workers,
                prefetch_steps=prefetch_steps,
                pin_memory=pin_memory,
            )
        else:
            self._producer = _Thread(stream, split, steps, prefetch_steps, pin_memory)

    def __iter__(self) -> Iterator[tuple[int, list[Any]]]:
        return self

    def __next__(self) -> tuple[int, list[Any]]:
        began = time.perf_counter()
        try:
            step = next(self._steps)
            batches = self._producer.take()
        except BaseException:
            self.close()
            raise
        self.data_wait_seconds = time.perf_counter() - began
        return step, batches

    def close(self) -> None:
        """Ends the workers; what they prefetched is dropped."""
        self._producer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Thread:
    """One thread that composes steps ahead."""

    def __init__(
        self,
        stream: Any,
        split: dict[str, int],
        steps: range,
        prefetch_steps: int,
        pin_memory: bool,
    ) -> None:
        self._stream, self._split = stream, split
        self._steps, self._depth = iter(steps), prefetch_steps
        self._pin_memory = pin_memory
        self._waiting: deque[Future[list[Any]]] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="loader")

    def take(self) -> list[Any]:
        while len(self._waiting) < self._depth and (step := next(self._steps, None)) is not None:
            self._waiting.append(self._pool.submit(self._compose, step))
        return self._waiting.popleft().result()

    def _compose(self, step: int) -> list[Any]:
        batches = compose(self._stream, step, self._split)
        return pack(batches, shared=False).pin_memory().unpack() if self._pin_memory else batches

    def close(self) -> None:
        """Ends the thread after the step it is at."""
        self._waiting.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)
