"""Training runs that several tests look at, all in one launch: starting ranks is what costs.

    deepspeed --num_accelerators 2 tests/scenarios.py WORLD OUT
    python tests/scenarios.py WORLD OUT

WORLD is the tiny world of conftest.py. Each scenario is a run folder in OUT; OUT/rN.json says how
each ended.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from mllm import dist
from mllm import train as train_module
from mllm.config import Config, parse_config
from mllm.doctor.world import MODEL as DOCTORS_MODEL
from mllm.engine import Engine, init_distributed
from mllm.errors import UserError
from mllm.stages import Stage
from mllm.stop import STOP_FILE
from mllm.train import train

MODEL = DOCTORS_MODEL | {"vocab_size": 360}


def pretrain_config(world: Path, run_dir: Path) -> Config:
    """Text, pairs, interleaved and VQA; the text rows leave ranks without pictures."""
    sources = [("pairs", 0.3), ("text", 0.4), ("interleaved", 0.15), ("vqa", 0.15)]
    return parse_config(
        {
            "run_dir": str(run_dir),
            "tokenizer": str(world / "tokenizer"),
            "data": {
                "mixture": [
                    {"name": name, "path": str(world / name), "weight": weight}
                    for name, weight in sources
                ],
                "augment": True,
                "num_workers": 0,
            },
            "model": MODEL,
            "train": {
                "num_steps": 6,
                "micro_batch_size": 1,
                "global_batch_size": 4,
                "precision": "fp32",
                "peak_lr": 3e-3,
                "warmup_steps": 2,
                "vision_lr_scale": 0.5,
                "checkpoint_every": 3,
                "keep_checkpoints": 9,
            },
        },
        "the tests' config",
    )


def vision_config(world: Path, run_dir: Path, micro_batch_size: int) -> Config:
    config = pretrain_config(world, run_dir)
    source = replace(config.data.mixture[0], weight=1.0)
    return replace(
        config,
        stage="vision",
        data=replace(config.data, mixture=[source]),
        contrastive=replace(config.contrastive, embed_dim=16),
        train=replace(
            config.train,
            micro_batch_size=micro_batch_size,
            global_batch_size=12,
            train_last_blocks=2,
        ),
    )


def with_stage(config: Config, stage: int, precision: str = "fp32") -> Config:
    return replace(
        config,
        zero=replace(config.zero, stage=stage),
        train=replace(config.train, precision=precision),
    )


def with_validation(config: Config, every: int = 6) -> Config:
    """Held-out loss of three sources and completions of two of them, by steps of `every`."""
    held_out = [source for source in config.data.mixture if source.name != "interleaved"]
    train = replace(
        config.train,
        validate_every=every,
        validation_rows=5,  # no multiple of the rows of two ranks
        generation_samples=2,
        generation_tokens=8,
    )
    return replace(config, train=train, data=replace(config.data, validation=held_out))


def with_attention_dropout(config: Config) -> Config:
    """Two steps with the dropout that draws from torch's generator."""
    model = replace(config.model, attention_dropout=0.1)
    return replace(config, model=model, train=replace(config.train, num_steps=2))


@contextmanager
def leaking_validation() -> Iterator[None]:
    """The fault that validation must not have: it adds a gradient to the next step's."""
    build = train_module.build_stage

    def build_leaking(config: Config) -> Stage:
        stage = build(config)

        def validate(engine: Engine) -> dict[str, dict[str, float]]:
            batch = stage.stream.batch(
                0, rank=dist.rank(), world_size=dist.world_size(), micro_batch_size=1
            )
            with torch.enable_grad():
                loss_sum, _ = engine(batch)
                engine.backward(loss_sum / 1000)
            return {"validation": {}}

        return replace(stage, validate=validate)

    train_module.build_stage = build_leaking
    try:
        yield
    finally:
        train_module.build_stage = build


def main(world: Path, out: Path) -> None:
    dist.set_up_environment()
    init_distributed()
    size = dist.world_size()
    codes: dict[str, object] = {}

    def run(name: str, config: Config) -> None:
        try:
            codes[name] = train(config)
        except UserError as error:
            codes[name] = str(error)
        dist.barrier()

    def base(name: str) -> Config:
        return pretrain_config(world, out / name)

    def copy_first_half(whole: str, part: str) -> None:
        if dist.rank() == 0:
            shutil.copytree(out / whole, out / part)
            shutil.rmtree(out / part / "checkpoints" / "step-00000006")
        dist.barrier()

    def with_micro_batches(config: Config, micro_batch_size: int) -> Config:
        return replace(config, train=replace(config.train, micro_batch_size=micro_batch_size))

    for stage in (0, 2):  # 1: the whole runs below
        run(f"zero{stage}-{size}", with_stage(base(f"zero{stage}-{size}"), stage))
    run(f"zero3-{size}", with_validation(with_stage(base(f"zero3-{size}"), 3)))
    if size == 2:
        # With and without a look at held-out data; and with one that leaves a gradient behind.
        run("unvalidated", with_attention_dropout(with_stage(base("unvalidated"), 3)))
        for name in ("validated", "leaking"):
            config = with_validation(with_attention_dropout(with_stage(base(name), 3)), every=1)
            with leaking_validation() if name == "leaking" else nullcontext():
                run(name, config)
    if size == 1:
        run("one-micro-step", with_micro_batches(base("one-micro-step"), 4))
        for name in ("deterministic", "deterministic-again"):
            config = base(name)
            run(name, replace(config, train=replace(config.train, deterministic=True)))
            codes[f"{name}-kernels"] = torch.are_deterministic_algorithms_enabled()
        run("bf16-zero0", with_stage(base("bf16-zero0"), 0, "bf16"))
        run("vision-bf16", with_stage(vision_config(world, out / "vision-bf16", 12), 1, "bf16"))
    run(f"vision-{size}", vision_config(world, out / f"vision-{size}", 12 // size))

    # Resume: the whole run, then its copies without the second half.
    for kind, precision in (("", "fp32"), ("bf16-", "bf16")):
        whole, resumed = f"{kind}whole-{size}", f"{kind}resumed-{size}"
        run(whole, with_stage(base(whole), 1, precision))
        codes[f"{whole}-kernels"] = torch.are_deterministic_algorithms_enabled()
        copy_first_half(whole, resumed)
        run(resumed, with_stage(base(resumed), 1, precision))
    copy_first_half(f"whole-{size}", f"resplit-{size}")
    run(f"resplit-{size}", with_micro_batches(base(f"resplit-{size}"), 2))

    if size == 1:
        # Worker processes instead of a thread; and another mixture after step 3, with a window.
        whole = base("workers-1")
        run("workers-1", replace(whole, data=replace(whole.data, num_workers=2)))
        copy_first_half("whole-1", "changed-1")
        whole = base("changed-1")
        data = replace(whole.data, mixture=whole.data.mixture[:2], exclude_steps=["4:6"])
        run("changed-1", with_stage(replace(whole, data=data), 1, "fp32"))

    # Stopped by request after its first step, then continued.
    stopped = base(f"stopped-{size}")
    _stop_at_first_step(out / f"stopped-{size}", lambda: run(f"stopped-{size}", stopped))
    codes[f"stopped-{size}-again"] = train(stopped)
    if dist.rank() == 0:
        (out / f"r{size}.json").write_text(json.dumps(codes))


def _stop_at_first_step(run_dir: Path, start) -> None:  # type: ignore[no-untyped-def]
    """Asks for a stop as soon as the run has cleared old requests: on its first metrics line."""
    from mllm import metrics

    write = metrics.MetricsLog.write

    def write_and_ask(self, values):  # type: ignore[no-untyped-def]
        write(self, values)
        if dist.rank() == 0:
            (run_dir / STOP_FILE).touch()

    metrics.MetricsLog.write = write_and_ask
    try:
        start()
    finally:
        metrics.MetricsLog.write = write


if __name__ == "__main__":
    paths = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
    main(Path(paths[0]), Path(paths[1]))
