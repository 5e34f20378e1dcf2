"""`--replay STEP`: one step of a run once more, with the loss of each of its samples.

For the step behind a spike, or one whose samples `ledger.jsonl` names. The batch is the one that
the run's own stream.json says; the weights are those of the newest checkpoint before the step. One
process runs the forward pass, with the step's dropout; nothing in the run's folder changes.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mllm import dist
from mllm.checkpoint import init_from
from mllm.checkpoint_files import checkpoints, problem_of
from mllm.command import stdout_is_json
from mllm.config import Config
from mllm.engine_config import resolve_precision
from mllm.errors import UserError
from mllm.rollback import read_rollbacks
from mllm.run_folder import read_stream_state, with_all_sources
from mllm.stages import Stage, build_stage
from mllm.step_memory import DTYPES
from mllm.stream.batch import Batch
from mllm.stream.pairs import PairBatch


def main(config: Config, step: int, as_json: bool) -> int:
    """Prints a line for each sample of the step, highest loss first.

    Args:
        step: as in metrics.jsonl, so from 1.
        as_json: one JSON object a line on stdout, and nothing else there.
    """
    if step < 1:
        raise UserError(f"--replay {step}: steps of metrics.jsonl begin with 1")
    for entry in read_rollbacks(Path(config.run_dir)):
        if entry["back_to_step"] < step <= entry["last_step"]:
            print(
                f"mllm: the run was rolled back from step {entry['last_step']} to "
                f"{entry['back_to_step']}: this is the step {step} that came afterwards",
                file=sys.stderr,
            )
    with stdout_is_json():
        said, samples = replay(config, step)
        print(f"mllm: {said}", file=sys.stderr)
    samples.sort(key=lambda sample: -(sample["loss"] or 0.0))
    for sample in samples:
        if as_json:
            print(json.dumps(sample, ensure_ascii=False))
        else:
            loss = "-" if sample["loss"] is None else f"{sample['loss']:.4f}"
            print(
                f"{loss:>9}  {sample['scored_tokens']:6d}  {sample['source']}  {sample['sample']}"
            )
    return 0


def replay(config: Config, step: int) -> tuple[str, list[dict[str, Any]]]:
    """What was run, in a line, and the samples of step `step` of metrics.jsonl.

    A sample of which a row holds a piece alone stands there once a piece.
    """
    run_dir = Path(config.run_dir)
    state = read_stream_state(run_dir)
    stage = build_stage(with_all_sources(config, state))
    stage.stream.recall(state)
    weights = _load(run_dir, step - 1, stage.objective.model, config)
    precision = resolve_precision(config.train.precision)
    objective = stage.objective.to(dist.device(), DTYPES[precision]).train()
    # The contrast is over all pairs of a step, which have no micro-steps.
    train = config.train
    rows = train.global_batch_size if config.stage == "vision" else train.micro_batch_size
    samples: list[dict[str, Any]] = []
    for micro_step in range(stage.stream.grad_accum_steps(1, rows)):
        batch = stage.stream.batch(
            step - 1, micro_step, rank=0, world_size=1, micro_batch_size=rows
        )
        with torch.no_grad():
            _, losses = objective(stage.prepare(batch))
        samples += _by_sample(stage, batch, losses.float().cpu())
    for sample in samples:
        sample["step"] = step
    return f"step {step} of {run_dir}, {weights}, {precision}", samples


def _load(run_dir: Path, wanted: int, model: nn.Module, config: Config) -> str:
    """Puts the newest weights of at most `wanted` steps into the model; says which."""
    for folder in reversed(checkpoints(run_dir / "checkpoints")):
        saved = int(folder.name.removeprefix("step-"))
        if saved > wanted:
            continue
        if problem := problem_of(folder):
            print(f"mllm: passing over {folder}: {problem}", file=sys.stderr)
            continue
        init_from(model, folder)
        text = f"with the weights of {folder.name}"
        return text if saved == wanted else f"{text}, NOT of step {wanted}, which was not kept"
    if config.init_from:
        init_from(model, config.init_from)
    text = "with the weights that the run began with"
    return text if wanted == 0 else f"{text}, NOT of step {wanted}, which was not kept"


def _by_sample(
    stage: Stage, batch: Batch | PairBatch, losses: torch.Tensor
) -> Iterator[dict[str, Any]]:
    """Mean loss of each sample, None where nothing of it is scored.

    Args:
        losses: float32; of each scored position (N,), or the objective's (2, B) of pairs.
    """
    if isinstance(batch, PairBatch):
        for row, loss, is_used in zip(batch.rows, losses[0].tolist(), batch.is_used, strict=True):
            yield _entry(row.row, row.source, row.samples[0], int(is_used), loss)
        return
    by_position = torch.zeros(batch.loss_mask.shape, dtype=torch.float64)
    by_position[batch.loss_mask] = losses.double()
    for b, row in enumerate(batch.rows):
        spans = stage.stream.spans(row.step, row.row)
        for key, (begin, end) in zip(row.samples, spans, strict=True):
            # A loss stands where its token is predicted, one position before the token.
            own = slice(max(0, begin - 1), end - 1)
            scored = int(batch.loss_mask[b, own].sum())
            yield _entry(row.row, row.source, key, scored, float(by_position[b, own].sum()))


def _entry(row: int, source: str, key: str, scored: int, loss_sum: float) -> dict[str, Any]:
    return {
        "row": row,
        "source": source,
        "sample": key,
        "scored_tokens": scored,
        "loss": loss_sum / scored if scored else None,
    }
