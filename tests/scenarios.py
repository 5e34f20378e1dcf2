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
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from corpora.document import Document
from corpora.shards import ShardWriter
from mllm import dist
from mllm import train as train_module
from mllm.config import Config, SourceConfig, parse_config
from mllm.doctor.world import MODEL as DOCTORS_MODEL
from mllm.engine import Engine, init_distributed
from mllm.errors import UserError
from mllm.lock import STOP_FILE
from mllm.model.config import TextConfig
from mllm.objectives import LanguageModelling
from mllm.rollback import ROLLBACKS
from mllm.stages import Stage, vision_stage
from mllm.stream.batch import Batch
from mllm.stream.stream import TokenStream
from mllm.train import train
from tests.conftest import square

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


def text_only_config(world: Path, run_dir: Path) -> Config:
    """No picture in any batch, and no part of the vision encoder trained."""
    config = pretrain_config(world, run_dir)
    text = [source for source in config.data.mixture if source.name == "text"]
    return replace(
        config,
        data=replace(config.data, mixture=text),
        train=replace(config.train, train_last_blocks=0),
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


def clip_config(world: Path, run_dir: Path, micro_batch_size: int) -> Config:
    """The vision stage with CLIP's text Transformer."""
    config = vision_config(world, run_dir, micro_batch_size)
    text = TextConfig(width=24, num_layers=2, num_heads=2, mlp_dim=48)
    settings = replace(config.contrastive, text_tower="transformer", text=text, text_len=20)
    return replace(config, contrastive=settings)


def with_naming(config: Config, run_dir: Path) -> Config:
    """A run of its own that also names held-out pictures every second step."""
    corpus = run_dir.parent / "naming"
    if dist.rank() == 0 and not corpus.exists():
        colours = ["red", "green", "blue", "yellow", "black", "grey"]
        with ShardWriter(corpus, samples_per_shard=30) as writer:
            for i in range(30):
                names = [f"a {colours[(i + k) % 6]} square." for k in range(5)]
                meta = {"answer": names[0], "distractors": names[1:]}
                writer.write(Document(f"naming{i:02d}", (square(colours[i % 6]),), meta))
    dist.barrier()
    return replace(
        config,
        run_dir=str(run_dir),
        data=replace(config.data, validation=[SourceConfig("naming", str(corpus))]),
        train=replace(config.train, validate_every=2),
    )


def save_gradients(config: Config, path: Path) -> None:
    """Those of one step's pairs, summed over ranks, for each parameter by name."""
    stage = vision_stage(config)
    batch = stage.stream.batch(
        0,
        rank=dist.rank(),
        world_size=dist.world_size(),
        micro_batch_size=config.train.micro_batch_size,
    )
    loss_sum, _ = stage.objective(batch)
    loss_sum.backward()
    gradients = {}
    for name, parameter in stage.objective.named_parameters():
        if parameter.grad is not None:
            torch.distributed.all_reduce(parameter.grad)
            gradients[name] = parameter.grad
    if dist.rank() == 0:
        torch.save(gradients, path)


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

    def without_dry_pass(config: Config) -> Config:
        return replace(config, train=replace(config.train, dry_pass=False))

    # 1: the whole runs below. 3 first: it puts DeepSpeed's own linear in the place of torch's, for
    # the rest of the process, which moves losses by 3e-8.
    run(f"zero3-{size}", with_validation(with_stage(base(f"zero3-{size}"), 3)))
    for stage in (0, 2):
        run(f"zero{stage}-{size}", with_stage(base(f"zero{stage}-{size}"), stage))
    for stage in (0, 1, 2, 3):  # every other run has one
        config = with_stage(base(f"no-dry-pass-{stage}-{size}"), stage)
        run(f"no-dry-pass-{stage}-{size}", without_dry_pass(config))
    if size == 2:
        for stage in (2, 3):
            name = f"text-only-zero{stage}"
            run(name, with_stage(text_only_config(world, out / name), stage))
        # With and without a look at held-out data; and with one that leaves a gradient behind.
        run("unvalidated", with_attention_dropout(with_stage(base("unvalidated"), 3)))
        for name in ("validated", "leaking"):
            config = with_validation(with_attention_dropout(with_stage(base(name), 3)), every=1)
            with leaking_validation() if name == "leaking" else nullcontext():
                run(name, config)
    if size == 1:
        config = with_stage(base("bf16-no-dry-pass-1"), 1, "bf16")
        run("bf16-no-dry-pass-1", without_dry_pass(config))
        with patch.object(Engine, "_discard_gradients", lambda self: None):
            run("dirty-dry-pass", with_stage(base("dirty-dry-pass"), 0))
        run("one-micro-step", with_micro_batches(base("one-micro-step"), 4))
        for name in ("deterministic", "deterministic-again"):
            config = base(name)
            run(name, replace(config, train=replace(config.train, deterministic=True)))
            codes[f"{name}-kernels"] = torch.are_deterministic_algorithms_enabled()
        run("bf16-zero0", with_stage(base("bf16-zero0"), 0, "bf16"))
        run("vision-bf16", with_stage(vision_config(world, out / "vision-bf16", 12), 1, "bf16"))
    run(f"vision-{size}", vision_config(world, out / f"vision-{size}", 12 // size))
    # CLIP's two towers: one rank with and without validation, two ranks under ZeRO-3 with it.
    clip = clip_config(world, out / f"clip-{size}", 12 // size)
    validated = with_naming(clip, out / f"clip-validated-{size}")
    if size == 1:
        run("clip-1", clip)
    run(f"clip-validated-{size}", with_stage(validated, 1 if size == 1 else 3))
    save_gradients(clip, out / f"clip-gradients-{size}.pt")

    # Resume: the whole run, then its copies without the second half.
    for kind, precision in (("", "fp32"), ("bf16-", "bf16"))[: 3 - size]:
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

    # A moving average of the weights, and the same run resumed in its middle.
    for stage in (0, 2) if size == 1 else (1, 3):
        name, resumed = f"average-{stage}-{size}", f"average-resumed-{stage}-{size}"
        run(name, with_average(with_stage(base(name), stage)))
        if dist.rank() == 0:
            shutil.copytree(out / name, out / resumed)
            for step in (4, 5, 6):
                shutil.rmtree(out / resumed / "checkpoints" / f"step-{step:08d}")
        dist.barrier()
        run(resumed, with_average(with_stage(base(resumed), stage)))

    # Data that does harm in its steps 5 and 6, and the same run told beforehand to leave it out.
    for stage in (0, 1) if size == 1 else (3,):
        name, told = f"rolled-back-{stage}-{size}", f"told-{stage}-{size}"
        config = with_limits(with_stage(base(name), stage))
        with poisoned(config, steps=(4, 5), factor=float("nan")):
            run(name, config)
        run(f"{name}-again", config)
        if dist.rank() == 0:
            shutil.copytree(out / name, out / told)
            shutil.rmtree(out / told / "checkpoints" / "step-00000006")
            (out / told / ROLLBACKS).unlink()
        dist.barrier()
        told_config = with_stage(base(told), stage)
        data = replace(told_config.data, exclude_steps=["4:6"])
        run(told, with_limits(replace(told_config, data=data)))
    if size == 1:
        config = with_limits(base("spikes"))
        with poisoned(config, steps=(4, 5), factor=3.0), patch("mllm.spikes.MIN_HISTORY", 3):
            run("spikes", config)
        config = with_limits(base("twice-bad"))
        with poisoned(config, steps=(4, 5, 6, 7), factor=float("nan")):
            run("twice-bad", config)

    # Stopped by request after its first step, then continued.
    stopped = base(f"stopped-{size}")
    _stop_at_first_step(out / f"stopped-{size}", lambda: run(f"stopped-{size}", stopped))
    codes[f"stopped-{size}-again"] = train(stopped)
    if dist.rank() == 0:
        (out / f"r{size}.json").write_text(json.dumps(codes))


def with_average(config: Config) -> Config:
    return replace(config, train=replace(config.train, ema_decay=0.4, checkpoint_every=1))


def with_limits(config: Config) -> Config:
    return replace(config, train=replace(config.train, max_skipped_steps=2, max_spikes=2))


@contextmanager
def poisoned(config: Config, steps: tuple[int, ...], factor: float) -> Iterator[None]:
    """Multiplies the losses of these stream steps' rows, in whatever step they are trained."""
    stream = TokenStream.from_config(config)
    split = {"rank": 0, "world_size": 1, "micro_batch_size": config.train.global_batch_size}
    rows = {row.numpy().tobytes() for s in steps for row in stream.batch(s, **split).token_ids}
    forward = LanguageModelling.forward

    def harmed(self: LanguageModelling, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        loss_sum, losses = forward(self, batch)
        is_bad = batch.rows and any(row.numpy().tobytes() in rows for row in batch.token_ids)
        return (loss_sum * factor, losses * factor) if is_bad else (loss_sum, losses)

    with patch.object(LanguageModelling, "forward", harmed):
        yield


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
