"""Rows to this rank's batches, a few steps ahead of the loop.

Workers are threads: what they do (reading, tokenising, decoding pictures) runs outside the
interpreter lock for the most part, batches arrive without a copy, and nothing outlives the process.
"""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from mllm.stream.batch import Batch
from mllm.stream.stream import TokenStream


class Loader:
    """Iterates `(step, [Batch per micro-step])` of one rank, from `start_step` on.

    An error in a worker is raised in the loop, with the worker's traceback, at the step it belongs
    to. Masked samples are reported to the stream's ledger when their step is handed out, so no
    ledger line runs ahead of the training loop.

    Args:
        num_workers: threads; 0 composes each step when it is asked for.
        prefetch_steps: steps composed ahead, at most; bounds the memory.
        end_step: the first step not to compose; None goes on for ever.

    Attributes:
        data_wait_seconds: how long the loop waited for the last item.
    """

    def __init__(
        self,
        stream: TokenStream,
        *,
        rank: int,
        world_size: int,
        micro_batch_size: int,
        start_step: int = 0,
        end_step: int | None = None,
        num_workers: int = 1,
        prefetch_steps: int = 4,
    ) -> None:
        self.stream = stream
        self.rank, self.world_size = rank, world_size
        self.micro_batch_size = micro_batch_size
        self.end_step = end_step
        self.data_wait_seconds = 0.0
        self._grad_accum_steps = stream.grad_accum_steps(world_size, micro_batch_size)
        self._next_step = start_step  # handed out next
        self._next_asked = start_step  # asked of the workers next
        self._depth = max(num_workers, prefetch_steps)
        self._waiting: deque[Future[list[Batch]]] = deque()
        self._workers = (
            ThreadPoolExecutor(num_workers, thread_name_prefix="loader") if num_workers else None
        )

    def __iter__(self) -> Iterator[tuple[int, list[Batch]]]:
        return self

    def __next__(self) -> tuple[int, list[Batch]]:
        step = self._next_step
        if self.end_step is not None and step >= self.end_step:
            self.close()
            raise StopIteration
        began = time.perf_counter()
        try:
            batches = self._take(step)
        except BaseException:
            self.close()
            raise
        self.data_wait_seconds = time.perf_counter() - began
        self._next_step += 1
        for batch in batches:
            self.stream.report(batch)
        return step, batches

    def close(self) -> None:
        """Ends the workers, each after the step it is at; what they prefetched is dropped."""
        self._waiting.clear()
        if self._workers is not None:
            self._workers.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _take(self, step: int) -> list[Batch]:
        if self._workers is None:
            return self._compose(step)
        while len(self._waiting) < self._depth and self._next_asked != self.end_step:
            self._waiting.append(self._workers.submit(self._compose, self._next_asked))
            self._next_asked += 1
        return self._waiting.popleft().result()

    def _compose(self, step: int) -> list[Batch]:
        return [
            self.stream.compose(
                step,
                micro_step,
                rank=self.rank,
                world_size=self.world_size,
                micro_batch_size=self.micro_batch_size,
            )
            for micro_step in range(self._grad_accum_steps)
        ]
