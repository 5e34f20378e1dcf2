"""The same work over every shard, in this process or in several."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

from mllm.errors import UserError

Result = TypeVar("Result")


def each_shard(
    work: Callable[[str], Result], names: Sequence[str], workers: int
) -> Iterator[Result]:
    """Yields `work(name)` of each shard in order; the first error ends it.

    Args:
        work: Can be pickled where there are several workers.
        names: Of shards.
        workers: Processes; 1 stays in this one.
    """
    if workers == 1 or len(names) == 1:
        yield from map(work, names)
        return
    # Spawned, since a fork copies the locks of threads that a caller may have.
    context = multiprocessing.get_context("spawn")
    size = min(workers, len(names))
    with ProcessPoolExecutor(size, context, initializer=die_with_parent) as pool:
        try:
            yield from pool.map(work, names)
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed, by want of memory perhaps; run again, what is done "
                "is kept, with fewer --workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def die_with_parent() -> None:
    """Ends this worker process at Ctrl-C without a traceback, and when its parent is killed.

    It would else wait for work for ever: it holds both ends of its queue.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
