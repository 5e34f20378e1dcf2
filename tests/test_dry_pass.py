"""The worst micro-batch: as large as any that the stream gives, and told in one line."""

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mllm import dry_pass
from mllm.config import Config
from mllm.errors import UserError
from mllm.stages import build_stage
from mllm.stream.stream import TokenStream
from tests.conftest import World
from tests.scenarios import pretrain_config, vision_config


@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(1, 1), (1, 4), (2, 2), (4, 1)])
def test_no_step_has_a_micro_batch_with_more_pictures(
    world: World, world_size: int, micro_batch_size: int
) -> None:
    stream = TokenStream.from_config(pretrain_config(world.root, world.root / "run"))
    bound = dry_pass.most_images(stream, world_size, micro_batch_size)
    split = {"world_size": world_size, "micro_batch_size": micro_batch_size}
    seen = 0
    for step in range(60):
        loads: dict[tuple[int, int], int] = {}
        for row in stream.row_infos(step, **split):
            cell = (row.micro_step, row.rank)
            loads[cell] = loads.get(cell, 0) + row.images
        seen = max(seen, *loads.values())
    assert seen <= bound
    fullest = max(int(source.plan.row_images.max()) for source in stream.sources)
    assert bound <= micro_batch_size * fullest
    if micro_batch_size == 1:
        assert seen == bound == fullest  # and no more than that


@pytest.mark.parametrize("stage", ["pretrain", "vision"])
def test_the_worst_case_is_a_batch_that_the_model_takes(world: World, stage: str) -> None:
    run_dir = world.root / "run"
    config = pretrain_config(world.root, run_dir)
    if stage == "vision":
        config = vision_config(world.root, run_dir, 12)
    built = build_stage(config)
    batch: Any = dry_pass.worst_case(config, built).batch
    real: Any = built.stream.batch(
        0, rank=0, world_size=1, micro_batch_size=config.train.micro_batch_size
    )
    for name, value in vars(real).items():
        if isinstance(value, torch.Tensor):
            mine = getattr(batch, name)
            assert (mine.dtype, mine.shape[1:]) == (value.dtype, value.shape[1:]), name
            assert len(mine) == len(value) or name == "pixels", name
    loss_sum, losses = built.objective(batch)
    assert torch.isfinite(loss_sum) and losses.isfinite().all()
    if stage == "pretrain":
        assert len(losses) == batch.loss_mask.sum() > real.loss_mask.sum()


def _run_out(config: Config, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def rehearse(batch: Any) -> None:
        raise error

    case = dry_pass.WorstCase(
        SimpleNamespace(to=lambda device: None),  # type: ignore[arg-type]
        "4 rows of 128 positions with 9 pictures",
    )
    monkeypatch.setattr(dry_pass, "worst_case", lambda *_: case)
    stage: Any = None
    engine: Any = SimpleNamespace(rehearse=rehearse)
    dry_pass.dry_pass(config, stage, engine)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate me"),
        MemoryError(),
    ],
)
def test_out_of_memory_is_one_line_that_names_what_to_lower(
    world: World, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "alloc_cpu" in str(error):
        with pytest.raises(RuntimeError) as real:
            torch.empty(2**52)  # what this allocator really says
        error = real.value
    config = pretrain_config(world.root, world.root / "run")
    with pytest.raises(UserError) as raised:
        _run_out(config, error, monkeypatch)
    text = str(raised.value)
    assert "\n" not in text and "4 rows of 128 positions with 9 pictures" in text
    assert "train.activation_checkpointing" in text and "zero.stage" in text
    named = [part.split()[0] for part in text.split("train.")[1:]]
    assert set(named) <= set(inspect.signature(type(config.train)).parameters)


def test_other_errors_keep_their_traceback(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    config = pretrain_config(world.root, world.root / "run")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        _run_out(config, RuntimeError("mat1 and mat2 shapes cannot be multiplied"), monkeypatch)
