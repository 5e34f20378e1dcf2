"""The training loop of every stage, top to bottom.

    deepspeed --num_accelerators 2 mllm/train.py mllm/configs/demo_cpu.yaml
    mllm train mllm/configs/demo_cpu.yaml --num-ranks 2 train.num_steps=20

The same command continues its run folder. Exit code 75: saved and stopped before its end.
"""

import sys
from pathlib import Path

# The launcher puts this file's folder first on sys.path, where config.py or dist.py could shadow
# another package's.
_HERE = str(Path(__file__).resolve().parent)
sys.path[:] = [entry for entry in sys.path if str(Path(entry or ".").resolve()) != _HERE]
if str(Path(_HERE).parent) not in sys.path:
    sys.path.insert(0, str(Path(_HERE).parent))

import signal
import time
from types import FrameType

import torch

from mllm import checkpoint, dist
from mllm.checkpoint import TrainState
from mllm.config import Config, load_config
from mllm.engine import Engine, init_distributed, resolve_precision, set_determinism
from mllm.errors import UserError
from mllm.files import write_json
from mllm.lock import run_lock
from mllm.metrics import MetricsLog, cut_after
from mllm.model.init import count_parameters
from mllm.optim import learning_rate
from mllm.run_folder import Ledger, continue_folder, read_stream_state
from mllm.stages import Stage, build_stage, generation
from mllm.stages.isolation import isolated
from mllm.stop import STOP_FILE
from mllm.stream.loader import Loader
from mllm.terminal import TerminalLine

EXIT_STOPPED = 75


def main(argv: list[str]) -> int:
    arguments = [a for a in argv if not a.startswith("--local_rank")]  # the launcher may add it
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    config = load_config(arguments[0], arguments[1:])
    dist.set_up_environment()
    init_distributed()
    return train(config)


def train(config: Config) -> int:
    """Trains one stage from its newest checkpoint, or from the start, to `train.num_steps`."""
    with run_lock(Path(config.run_dir)):
        return _train(config)


def _train(config: Config) -> int:
    # ------------------------------------------------------------------------------ build
    run_dir = Path(config.run_dir)
    config = continue_folder(run_dir, config, resolve_precision(config.train.precision))
    set_determinism(config.train.deterministic)
    stop_flag = _StopFlag(run_dir)
    ledger = Ledger(run_dir)
    stage = build_stage(config)
    init_note = ""
    resume_point = checkpoint.resume_point(run_dir)
    if config.init_from and resume_point is None:
        copied, missing = checkpoint.init_from(stage.objective.model, config.init_from)
        init_note = f", {copied} tensors from {config.init_from} ({len(missing)} new)"
    engine = Engine(stage.objective, config, config.train.precision)
    dist.say(f"stage {config.stage} in {run_dir}: {_sizes(stage, engine, config)}{init_note}")

    state = TrainState(
        world_size=dist.world_size(),
        zero_stage=engine.stage,
        zero_fingerprint=engine.zero_fingerprint,
    )
    if resume_point is not None:
        state = checkpoint.resume(resume_point, engine)
        where = str(run_dir / "stream.json")
        for note in stage.stream.resume(read_stream_state(run_dir), state.step, where):
            dist.say(f"mllm: {note}")
        dist.barrier()  # every rank has read it
    for entry in stage.stream.unmatched_takedowns():
        dist.say(f"mllm: data.exclude: no source has {entry}")
    if dist.rank() == 0:
        write_json(run_dir / "deepspeed.json", engine.settings)
        write_json(run_dir / "stream.json", stage.stream.state.to_json())
        cut_after(run_dir / "metrics.jsonl", state.step)
        cut_after(run_dir / "ledger.jsonl", state.step)
        cut_after(run_dir / generation.FILE_NAME, state.step)
    log = MetricsLog(run_dir, is_writer=dist.rank() == 0, tensorboard=config.train.tensorboard)
    line = TerminalLine(config.train.num_steps, state.step)
    loader = Loader(
        stage.stream,
        start_step=state.step,
        end_step=config.train.num_steps,
        rank=dist.rank(),
        world_size=dist.world_size(),
        micro_batch_size=config.train.micro_batch_size,
        num_workers=config.data.num_workers,
        pin_memory=dist.device().type == "cuda",
    )

    # ------------------------------------------------------------------------------- loop
    engine.train()
    saved_at = state.step
    try:
        for step, batches in loader:
            started = time.monotonic()
            values = _step(config, stage, engine, state, step, batches)
            state.step = step + 1
            values["data_wait_seconds"] = round(loader.data_wait_seconds, 4)
            values["step_seconds"] = round(time.monotonic() - started, 4)
            values["time"] = round(time.time(), 3)
            _rates(values, values["step_seconds"] + values["data_wait_seconds"])
            log.write(values)
            line.show(values)
            for batch in batches:
                for bad in batch.bad_samples:
                    ledger.write({**bad, "step": state.step})
            if ledger.num_bad_samples > config.train.max_bad_samples:
                raise UserError(
                    f"more than train.max_bad_samples {config.train.max_bad_samples} samples were "
                    f"masked; {run_dir}/ledger.jsonl names them; mend the corpus or raise the limit"
                )
            if not values["applied"]:
                ledger.write(
                    {
                        "step": state.step,
                        "reason": "step skipped: non-finite gradients",
                        "samples": [key for b in batches for row in b.rows for key in row.samples],
                    }
                )
            if state.skipped_in_a_row >= config.train.max_skipped_steps:
                raise UserError(
                    f"{state.skipped_in_a_row} steps in a row had non-finite gradients; their "
                    f"samples are in {run_dir}/ledger.jsonl; lower train.peak_lr or look at them"
                )
            is_last = state.step == config.train.num_steps
            if stage.validate and (is_last or state.step % config.train.validate_every == 0):
                with isolated(engine):
                    scores = stage.validate(engine)
                    samples = stage.generate() if stage.generate else []
                log.write({"step": state.step, **scores, "time": time.time()})
                generation.append(run_dir, state.step, samples)
                line.note(state.step, scores)
            must_stop = stop_flag.agreed()
            if is_last or must_stop or state.step % config.train.checkpoint_every == 0:
                if checkpoint.save(
                    run_dir,
                    engine,
                    state,
                    stage.model_config,
                    stage.stream.tokenizer.model_path,
                    config.train.keep_checkpoints,
                ):
                    saved_at = state.step
                elif is_last or must_stop:
                    raise UserError(f"the last checkpoint of {run_dir} could not be written")
            if must_stop and not is_last:
                dist.say(f"saved step {state.step} and stopped; the same command goes on")
                return EXIT_STOPPED
    except UserError as error:
        if dist.rank() != 0:  # rank 0 tells its own; a failing disk may be this rank's alone
            print(f"mllm: error: rank {dist.rank()}: {error}", file=sys.stderr, flush=True)
        raise
    finally:
        loader.close()
        log.close()
        line.close()
    dist.say(f"done: step {state.step}, checkpoint of step {saved_at} in {run_dir}/checkpoints")
    return 0


def _step(
    config: Config, stage: Stage, engine: Engine, state: TrainState, step: int, batches: list
) -> dict:
    """One optimizer update. Returns what `metrics.jsonl` gets, summed over ranks."""
    # Counted before the first backward: the gradient is a sum over all ranks and micro-steps,
    # divided once (deepspeed.md, loss normalisation).
    counts = [float(stage.count(batch)) for batch in batches]
    global_count = dist.all_reduce_sum([sum(counts)])[0]
    engine.set_learning_rate(rate := learning_rate(config.train, state.applied_steps))
    totals = [0.0] * stage.num_totals
    for micro_step, batch in enumerate(batches):
        # Of attention dropout alone, whose masks are drawn inside kernels; the others follow from
        # each row's seed. Either way no generator's state is stored.
        torch.manual_seed(hash((config.seed, step, dist.rank(), micro_step)) % 2**63)
        loss_sum, losses = engine(stage.prepare(batch))
        engine.backward(loss_sum / max(1.0, global_count))
        engine.micro_step()
        totals = [a + b for a, b in zip(totals, stage.totals(batch, losses), strict=True)]
    result = engine.result()
    totals = dist.all_reduce_sum(totals)
    if result.applied:
        state.applied_steps += 1
        state.skipped_in_a_row = 0
    else:
        state.skipped_in_a_row += 1
    return {
        "step": step + 1,
        **stage.summary(totals),
        "grad_norm": result.grad_norm,
        "lr": rate,
        "applied": result.applied,
    }


def _rates(values: dict, seconds: float) -> None:
    for name, count in (
        ("tokens_per_second", "tokens"),
        ("useful_tokens_per_second", "useful_tokens"),
        ("images_per_second", "images"),
    ):
        if count in values:
            values[name] = round(values[count] / seconds, 1)


def _sizes(stage: Stage, engine: Engine, config: Config) -> str:
    counts = count_parameters(stage.objective.model)
    parts = ", ".join(
        f"{name} {n:,} ({free:,} trainable)" for name, (n, free) in counts.items() if n
    )
    return (
        f"{parts}; {config.train.num_steps} steps of {config.train.global_batch_size} rows on "
        f"{dist.world_size()} ranks, {engine.precision}, ZeRO-{engine.stage}"
    )


class _StopFlag:
    """SIGTERM, SIGUSR1, Ctrl-C or `mllm stop` on any rank; all hear of it at one step."""

    def __init__(self, run_dir: Path):
        self._stop_file = run_dir / STOP_FILE
        self._is_set = False
        if dist.rank() == 0:
            self._stop_file.unlink(missing_ok=True)  # an old request is no request
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._is_set:
            raise SystemExit(128 + number)  # the second one means now
        self._is_set = True

    def agreed(self) -> bool:
        is_set = self._is_set or (dist.rank() == 0 and self._stop_file.exists())
        return dist.all_reduce_sum([float(is_set)])[0] > 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        if dist.rank() == 0:
            print(f"mllm: error: {error}", file=sys.stderr)
        sys.exit(2)
