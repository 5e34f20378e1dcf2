"""Finding and loading checkpoints; saving.py writes them.

checkpoints/step-00000100/
  model.safetensors   float32 weights of the whole model, for init_from, export and evaluation
  model_config.json   the sizes
  tokenizer.model     what gave the model its ids
  state.json          step and counters of the loop
  deepspeed/          optimizer states, one file a rank (pickles: trusted like code)
  manifest.json       size and SHA-256 of every file above
"""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from mllm import dist
from mllm.checkpoint_files import AVERAGE, MANIFEST, STATE, checkpoints, problem_of
from mllm.engine import Engine, read_states
from mllm.errors import UserError
from mllm.reshape import SavedState

DEEPSPEED_TAG = "deepspeed"
EMBEDDING = "decoder.embed_tokens.weight"
CONTRASTIVE_TEXT = (  # of the vision stage's text side: the bag's, the Transformer's
    "text.embedding.weight",
    "text.text_model.embeddings.token_embedding.weight",
)
TIED = "head.weight"  # the same tensor as decoder.embed_tokens.weight


@dataclass
class TrainState:
    """The loop's counters. The stream needs only `step`: a batch is a function of it."""

    step: int = 0  # steps done
    applied_steps: int = 0  # those that moved the weights; the schedule counts these
    skipped_in_a_row: int = 0
    # What wrote the checkpoint; the same reads it bit by bit.
    world_size: int = 1
    zero_stage: int = 1
    zero_fingerprint: str = ""


def newest_valid(run_dir: Path) -> Path | None:
    """The newest checkpoint of a run that verifies. Those that do not are named and passed over."""
    for checkpoint in reversed(checkpoints(run_dir / "checkpoints")):
        problem = problem_of(checkpoint)
        if problem is None:
            return checkpoint
        print(f"mllm: passing over {checkpoint}: {problem}", flush=True)
    return None


def resume_point(run_dir: Path) -> Path | None:
    """Where a run goes on, or None for a new one. All ranks call it and get the same.

    Raises:
        UserError: there are checkpoints but none verifies: starting anew would lose them.
    """
    found, num_folders = None, 0
    if dist.rank() == 0:
        found = newest_valid(run_dir)
        num_folders = len(checkpoints(run_dir / "checkpoints"))
    found, num_folders = dist.broadcast_object((found, num_folders))
    if found is None and num_folders:
        raise UserError(
            f"none of the {num_folders} checkpoints in {run_dir}/checkpoints verifies; "
            "bring one back, or choose another run_dir to start anew"
        )
    return found


def latest(path: str | Path) -> Path:
    """The checkpoint meant by a run folder or a checkpoint folder.

    Raises:
        UserError: there is none, or the one named does not verify.
    """
    path = Path(path)
    if (path / MANIFEST).is_file():
        if problem := problem_of(path):
            raise UserError(f"checkpoint {path}: {problem}; use another checkpoint of the run")
        return path
    found = newest_valid(path) if path.is_dir() else None
    if found is None:
        raise UserError(f"no checkpoint in {path}; train first, or name a run or checkpoint folder")
    return found


def resume(checkpoint: Path, engine: Engine) -> TrainState:
    """Loads everything. All ranks call it.

    The ranks, ZeRO stage and settings that wrote it read it back bit by bit; others fill
    themselves from its parts (reshape.py).

    Raises:
        UserError: others, where a file of it cannot be read or the engine cannot be filled.
    """
    state = _resume(checkpoint, engine)
    average = checkpoint / AVERAGE
    if engine.average is not None and average.is_file():
        engine.average.load(_named_in_engine(average, engine), engine.pieces())
    elif engine.average is not None:
        dist.say(f"mllm: train.ema_decay: {checkpoint} has no average; it begins here")
        engine.average.restart()
    return state


def _named_in_engine(path: Path, engine: Engine) -> dict[str, torch.Tensor]:
    """Names without what an objective puts before its model's, as the engine has them."""
    own = {name.removeprefix("model."): name for name in engine.trainable_sizes}
    return {own[name]: tensor for name, tensor in load_file(path).items() if name in own}


def _resume(checkpoint: Path, engine: Engine) -> TrainState:
    saved = TrainState(**json.loads((checkpoint / STATE).read_text()))
    state = replace(
        saved,
        world_size=dist.world_size(),
        zero_stage=engine.stage,
        zero_fingerprint=engine.zero_fingerprint,
    )
    if state == saved:
        engine.load(checkpoint, DEEPSPEED_TAG)
        dist.say(f"resumed from {checkpoint} at step {state.step}")
        return state
    started = time.monotonic()
    was, now = _setting(saved), _setting(state)
    if reason := engine.why_not_fill():
        raise UserError(
            f"{checkpoint} was written by {was}, this run has {now}, which {reason} does not "
            f"take over; start it with {was} and the same zero.config"
        )
    problem = None
    try:
        parts = SavedState(
            checkpoint,
            checkpoint / DEEPSPEED_TAG,
            saved.world_size,
            saved.zero_stage,
            engine.trainable_sizes,
            read_states,
        )
        if parts.step is None and saved.applied_steps:  # offloaded to where the ranks ran
            problem = f"{checkpoint} has no optimizer states in it; start it with {was}, as before"
    except UserError as error:
        problem = str(error)
    if problem := dist.first_problem(problem):  # else the others would wait for this rank
        raise UserError(problem)
    engine.fill(parts, state.step, state.step - state.applied_steps)
    dist.barrier()
    dist.say(
        f"resumed from {checkpoint} at step {state.step}, written by {was}; now {now}: "
        f"converted in {time.monotonic() - started:.1f} s"
    )
    return state


def _setting(state: TrainState) -> str:
    ranks = "1 rank" if state.world_size == 1 else f"{state.world_size} ranks"
    return f"{ranks} with ZeRO-{state.zero_stage}"


def init_from(module: nn.Module, source: str | Path) -> tuple[int, list[str]]:
    """Copies weights of equal names from a run, checkpoint or export folder into `module`.

    Returns:
        How many tensors were copied, and the names of those in `module` that were not.

    Raises:
        UserError: nothing to copy, or a tensor of another shape.
    """
    source = Path(source)
    is_export = (source / "config.json").is_file()
    folder = source if is_export else latest(source)
    weights: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("model*.safetensors")):  # an export may have several
        # An export has the same names below `model.`.
        weights |= {name.removeprefix("model."): x for name, x in load_file(path).items()}
    own = module.state_dict()
    for name in CONTRASTIVE_TEXT if EMBEDDING in own else ():
        # The decoder's words begin where the contrast with pictures put them, at the size that
        # embeddings are given (unit variance after the embedding scale).
        table = weights.pop(name, None)
        if table is not None and table.shape == own[EMBEDDING].shape:
            weights[EMBEDDING] = table * (table.shape[1] ** -0.5 / table.std())
    shared = own.keys() & weights.keys()
    for name in shared:
        if own[name].shape != weights[name].shape:
            raise UserError(
                f"init_from {source}: {name} has shape {list(weights[name].shape)}, the model "
                f"{list(own[name].shape)}; the two configs differ in a size"
            )
    if not shared:
        raise UserError(f"init_from {source}: no tensor of it has a name in this model")
    with torch.no_grad():
        for name in shared:
            own[name].copy_(weights[name])
    missing = sorted(name for name in own.keys() - shared if name != TIED)
    return len(shared), missing
