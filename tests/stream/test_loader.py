import threading
import time

import pytest
import torch

from mllm.stream.loader import Loader

SPLIT = dict(rank=1, world_size=2, micro_batch_size=2)


def same(one, two):
    return all(
        torch.equal(getattr(a, name), getattr(b, name)) and a.rows == b.rows
        for a, b in zip(one, two, strict=True)
        for name in ("token_ids", "target_ids", "loss_mask", "pixels", "source_ids")
    )


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_a_resumed_loader_goes_on_as_if_never_stopped(stream, num_workers):
    with Loader(stream, **SPLIT, end_step=8) as loader:
        whole = dict(loader)
    with Loader(stream, **SPLIT, start_step=3, end_step=8, num_workers=num_workers) as loader:
        rest = dict(loader)
    assert list(rest) == [3, 4, 5, 6, 7]
    assert all(same(rest[step], whole[step]) for step in rest)
    assert len(whole[0]) == 2  # 8 rows: 2 ranks x 2 rows x 2 micro-steps


def test_an_error_in_the_thread_is_raised_in_the_loop_at_its_step(stream, monkeypatch):
    compose = stream.batch

    def failing(step, *args, **kwargs):
        if step == 4:
            raise RuntimeError("worker died at step 4")
        return compose(step, *args, **kwargs)

    monkeypatch.setattr(stream, "batch", failing)
    steps = []
    with pytest.raises(RuntimeError, match="worker died at step 4") as caught:
        for step, _ in Loader(stream, **SPLIT):
            steps.append(step)
    assert steps == [0, 1, 2, 3]
    assert any(entry.name == "failing" for entry in caught.traceback), "the worker's traceback"


def test_prefetch_is_bounded_and_leaves_no_thread_behind(stream, monkeypatch):
    composed = []
    compose = stream.batch

    def counting(step, *args, **kwargs):
        composed.append(step)
        return compose(step, *args, **kwargs)

    monkeypatch.setattr(stream, "batch", counting)
    loader = Loader(stream, **SPLIT, prefetch_steps=3)
    next(loader)
    time.sleep(0.5)
    assert max(composed) <= 3
    assert loader.data_wait_seconds > 0
    loader.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("loader") and t.is_alive()]
