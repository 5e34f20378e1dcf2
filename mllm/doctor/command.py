"""`mllm doctor`: does this machine compute what it should? Needs no data and no network."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm.command import Parser, print_json, stdout_is_json

if TYPE_CHECKING:
    import torch

    from mllm.config import Config
    from mllm.doctor.check import Check
    from mllm.hf.modeling_mllm import MllmForConditionalGeneration
    from mllm.hf.processing_mllm import MllmProcessor

EXAMPLES = """
examples:
  mllm doctor
  mllm doctor --model runs/demo/export
  mllm doctor --json > doctor.json

Exit code 0: every check that ran passed; 1: one failed. On CPU, 2 ranks train a tiny model for a
few steps; two or more GPUs are used where there are, and a single GPU beside the CPU.
"""


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="mllm doctor",
        description="Checks, in a small world of its own, that what must be equal is equal on this "
        "machine: attention backends, packed and single documents, cached and uncached decoding, "
        "ZeRO stages, splits of a batch, resumed runs, exports.",
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "--model", metavar="DIR", help="an export, whose logits are checked as well"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse_args(argv)
    if args.json:
        with stdout_is_json():
            report = examine(args.model, say=lambda line: None)
        print_json(report)
    else:
        report = examine(args.model, say=lambda line: print(line, flush=True))
    return 0 if report["passed"] else 1


def examine(model_dir: str | None, say: Callable[[str], None]) -> dict[str, Any]:
    """Runs everything; `say` gets each line as soon as it is known.

    Returns:
        `environment` by name, `checks` with name, value, limit, unit, status, note and seconds, and
        whether all that ran `passed`.

    Raises:
        UserError: `model_dir` is no export.
    """
    started = time.monotonic()
    from transformers.utils.logging import disable_progress_bar

    from mllm import dist
    from mllm.doctor import environment
    from mllm.hf.load import load_export

    disable_progress_bar()
    device = dist.device()
    # First: a mistyped folder is told at once.
    exported = load_export(model_dir, device) if model_dir else None
    report: dict[str, Any] = {"environment": environment.describe(Path.cwd()), "checks": []}
    for name, value in report["environment"].items():
        say(f"{name}: {value}")
    with tempfile.TemporaryDirectory(prefix="mllm-doctor-") as root:
        last = time.monotonic()
        for check in _checks(Path(root), device, exported):
            say(check.line())
            fields = dataclasses.asdict(check)
            del fields["is_passed"]
            now = time.monotonic()
            report["checks"].append({**fields, "status": check.status, "seconds": now - last})
            last = now
    results = [check["status"] for check in report["checks"]]
    report["passed"] = "FAIL" not in results
    report["seconds"] = time.monotonic() - started
    say(
        f"{results.count('pass')} passed, {results.count('FAIL')} failed, "
        f"{results.count('not run')} not run, in {report['seconds']:.0f} s"
    )
    return report


def _checks(
    root: Path,
    device: torch.device,
    exported: tuple[MllmForConditionalGeneration, MllmProcessor] | None,
) -> Iterator[Check]:
    from mllm.doctor.attention import check_attention
    from mllm.doctor.stream import check_stream
    from mllm.doctor.world import make_world, world_config
    from mllm.hf.load import load_export
    from mllm.hf.write import write_model
    from mllm.model.init import build

    yield from check_attention(device)
    make_world(root)
    config = world_config(root, root / "run")
    yield check_stream(config)
    write_model(
        root / "untrained",
        build(config.model, seed=0).state_dict(),
        config.model,
        root / "tokenizer" / "tokenizer.model",
        resize=config.data.resize,
    )
    yield from _logits(config, load_export(root / "untrained", device), "")
    if exported:
        yield from _logits(_fitted(config, exported[0]), exported, " (--model)")
    yield from _training(root, device)


def _logits(
    config: Config, exported: tuple[MllmForConditionalGeneration, MllmProcessor], suffix: str
) -> Iterator[Check]:
    import numpy as np

    from mllm.doctor.logits import Prompt, check_batches, check_cache, check_isolation
    from mllm.doctor.world import picture, words
    from mllm.stream.stream import TokenStream

    model, processor = exported
    stream = TokenStream.from_config(config)
    batch = stream.batch(0, rank=0, world_size=1, micro_batch_size=stream.global_batch_size)
    yield check_isolation(
        f"documents in a row do not see each other{suffix}", model.model, batch.to(model.device)
    )
    draws = np.random.default_rng(1)

    def pictured(num_words: int) -> Prompt:
        return [picture(draws).data, words(draws, num_words)]

    prompt = [*pictured(3), *pictured(8)]
    yield check_cache(f"cached decoding = uncached{suffix}", model, processor, prompt)
    prompts: list[Prompt] = [[words(draws, 12)], pictured(2), prompt, [words(draws, 1)]]
    yield check_batches(f"batch of 1 = batch of N{suffix}", model, processor, prompts)


def _fitted(config: Config, model: MllmForConditionalGeneration) -> Config:
    """The small world for another model: its tokenizer, rows that hold a few of its pictures."""
    sizes = model.config.to_model_config()
    seq_len = min(sizes.seq_len, max(config.model.seq_len, 4 * (sizes.num_latents + 32)))
    return dataclasses.replace(
        config,
        tokenizer=model.config._name_or_path,
        model=dataclasses.replace(sizes, seq_len=seq_len),
    )


def _training(root: Path, device: torch.device) -> Iterator[Check]:
    """Runs on ranks of their own: on two GPUs or the CPU, and on a lone GPU as well."""
    import torch

    from mllm.doctor import training
    from mllm.doctor.check import failed
    from mllm.doctor.training import Leg, check_losses

    num_gpus = torch.cuda.device_count()
    is_on_cpu = num_gpus < 2
    two, one = root / "two-ranks", root / "one-rank"
    problem = training.launch(
        root, two, [*training.STAGES, training.RESUMED], 2, is_on_cpu=is_on_cpu
    )
    where = "2 ranks" if is_on_cpu else "2 GPUs"
    yield from _stages(two, where, problem, 0.0 if is_on_cpu else training.LOSS_LIMIT)
    name = "export = engine logits"
    yield failed(name, problem) if problem else _export(root, two, name, device)
    problem = problem or training.launch(root, one, [Leg("zero1")], 1, is_on_cpu=is_on_cpu)
    name = "losses of 1 rank x 4 micro-steps = 2 x 2"
    yield failed(name, problem) if problem else check_losses(name, two / "zero1", [one / "zero1"])
    if num_gpus == 1:
        lone = root / "gpu"
        problem = training.launch(
            root, lone, [*training.STAGES, training.RESUMED], 1, is_on_cpu=False
        )
        yield from _stages(lone, "1 GPU", problem, training.LOSS_LIMIT)


def _stages(runs: Path, where: str, problem: str | None, resume_limit: float) -> Iterator[Check]:
    """
    Args:
        resume_limit: nats; a GPU may add up in another order.
    """
    from mllm.doctor.check import failed
    from mllm.doctor.training import check_losses, check_resumed

    names = (f"losses of ZeRO 1 = 2 = 3, {where}", f"losses of a resumed run = whole, {where}")
    if problem:
        yield from (failed(name, problem) for name in names)
        return
    yield check_losses(names[0], runs / "zero1", [runs / "zero2", runs / "zero3"])
    yield check_resumed(names[1], runs / "zero1", runs / "resumed", resume_limit)


def _export(root: Path, runs: Path, name: str, device: torch.device) -> Check:
    """The ZeRO-3 run's export beside its engine."""
    import json

    import torch

    from mllm.doctor.logits import check_export
    from mllm.doctor.training import ENGINE_LOSSES, SCORED_ROWS
    from mllm.doctor.world import world_config
    from mllm.export import export
    from mllm.hf.load import load_export
    from mllm.stream.stream import TokenStream

    run_dir = runs / "zero3"
    export(run_dir, root / "export")
    model, _ = load_export(root / "export", device)
    stream = TokenStream.from_config(world_config(root, run_dir))
    batch = stream.batch(0, rank=0, world_size=2, micro_batch_size=SCORED_ROWS)
    losses = torch.tensor(json.loads((run_dir / ENGINE_LOSSES).read_text()))
    return check_export(name, losses, model, batch.to(device))
