"""The training loop of every stage, top to bottom.

    deepspeed --num_accelerators 2 mllm/train.py mllm/configs/demo_cpu.yaml
    mllm train mllm/configs/demo_cpu.yaml --num-ranks 2 train.num_steps=20
    python mllm/train.py runs/demo/pretrain/config.yaml --replay 17

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

import faulthandler
import os
import time
from functools import partial

import torch

from mllm import checkpoint, dist, launch
from mllm.checkpoint import TrainState
from mllm.checkpoint_files import bytes_file, json_file
from mllm.checkpoint_store import fetch_newer
from mllm.config import Config, load_config
from mllm.dry_pass import dry_pass
from mllm.engine import Engine, init_distributed
from mllm.engine_config import resolve_precision, set_determinism
from mllm.errors import UserError
from mllm.files import write_json
from mllm.lock import run_lock
from mllm.metrics import MetricsLog, cut_after
from mllm.model.init import count_parameters
from mllm.optim import learning_rate
from mllm.preflight import check_everywhere
from mllm.rollback import BadStretch, roll_back
from mllm.run_folder import Ledger, continue_folder, read_stream_state
from mllm.saving import Saver, check_room, checkpoint_size
from mllm.sinks import open_sinks
from mllm.spikes import LossWatch, recent_steps
from mllm.stages import Stage, build_stage, generation
from mllm.stages.isolation import isolated
from mllm.stop import StopFlag
from mllm.stream.loader import Loader
from mllm.terminal import TerminalLine
from mllm.throughput import StepMeter
from mllm.watchdog import Watchdog, watch

EXIT_STOPPED = 75


def main(argv: list[str]) -> int:
    arguments = [a for a in argv if not a.startswith("--local_rank")]  # the launcher may add it
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    if "--replay" in arguments:  # as `mllm train` does, on the first rank
        return launch.main(arguments) if dist.rank() == 0 else 0
    config = load_config(arguments[0], arguments[1:])
    dist.set_up_environment()
    init_distributed(config.train.hang_timeout_seconds)
    faulthandler.enable()  # a rank that crashes shows its stack
    return train(config)


def train(config: Config) -> int:
    """Trains one stage from its newest checkpoint, or from the start, to `train.num_steps`."""
    check_everywhere(config)
    run_dir = Path(config.run_dir)
    with run_lock(run_dir), watch(run_dir, config.train.hang_timeout_seconds) as watchdog:
        return _train(config, watchdog)


def _train(config: Config, watchdog: Watchdog) -> int:
    # ------------------------------------------------------------------------------ build
    run_dir = Path(config.run_dir)
    if config.train.checkpoint_store:
        fetch_newer(config.train.checkpoint_store, run_dir)
    config = continue_folder(run_dir, config, resolve_precision(config.train.precision))
    set_determinism(config.train.deterministic)
    stop_flag = StopFlag(run_dir, config.train.time_limit_seconds)
    ledger = Ledger(run_dir)
    stage = build_stage(config)
    checkpoint_bytes = checkpoint_size(stage.objective, config)
    check_room(run_dir, checkpoint_bytes, config.train.keep_checkpoints)
    init_note = ""
    resume_point = checkpoint.resume_point(run_dir)
    if config.init_from and resume_point is None:
        copied, missing = checkpoint.init_from(stage.objective.model, config.init_from)
        init_note = f", {copied} tensors from {config.init_from} ({len(missing)} new)"
    engine = Engine(stage.objective, config, config.train.precision)
    dist.say(f"stage {config.stage} in {run_dir}: {_sizes(stage, engine, config)}{init_note}")

    state, changes = _state_at(resume_point, run_dir, stage, engine)
    for entry in stage.stream.unmatched_takedowns():
        dist.say(f"mllm: data.exclude: no source has {entry}")
    if dist.rank() == 0:
        write_json(run_dir / "deepspeed.json", engine.settings)
        write_json(run_dir / "stream.json", stage.stream.state.to_json())
        cut_after(run_dir / "metrics.jsonl", state.step)
        cut_after(run_dir / "ledger.jsonl", state.step)
        cut_after(run_dir / generation.FILE_NAME, state.step)
    log = _open_log(run_dir, config, state.step)
    line = TerminalLine(config.train.num_steps, state.step)
    # Losses of other data are nothing to hold these against.
    loss_watch = LossWatch(config.train) if changes else _loss_watch(run_dir, config)
    meter = StepMeter(engine)
    loader = _loader(config, stage, state.step)

    saver = Saver(
        run_dir,
        {
            "model_config.json": json_file(stage.model_config),
            "tokenizer.model": bytes_file(stage.stream.tokenizer.model_path.read_bytes()),
        },
        config.train.keep_checkpoints,
        checkpoint_bytes,
        is_async=config.train.async_checkpoints,
        store=config.train.checkpoint_store,
    )

    # ------------------------------------------------------------------------------- loop
    engine.train()
    is_due = False  # a checkpoint
    try:
        if config.train.dry_pass and state.step < config.train.num_steps:
            dry_pass(config, stage, engine)
        stop_flag.saved(None)  # nor was the start
        watchdog.touch(state.step + 1, "data loading")
        while state.step < config.train.num_steps:
            step, batches = next(loader)
            watchdog.touch(step + 1, "step")
            meter.start(loader.data_wait_seconds, saver.take_blocked_seconds())
            values = _step(config, stage, engine, state, step, batches, meter)
            state.step = step + 1
            if problem := loss_watch.look(values["loss"], applied=values["applied"]):
                values["problem"] = problem
            log.write(values)
            line.show(values)
            _note_problems(config, ledger, state.step, batches, problem)
            if reason := loss_watch.too_many():
                first, harm = state.step - loss_watch.bad_in_a_row + 1, loss_watch.first_harm
                first_harm = None if harm is None else first + harm
                bad_steps = BadStretch(first, first_harm, state.step, reason)
                loader.close()
                saver.finish()
                state, done = roll_back(config, engine, stage.stream, bad_steps)
                dist.say(f"mllm: {done}")
                log.rewind(state.step)
                if dist.rank() == 0:
                    write_json(run_dir / "stream.json", stage.stream.state.to_json())
                    cut_after(run_dir / generation.FILE_NAME, state.step)
                    ledger.write({"step": state.step, "reason": done})
                loss_watch, is_due = _loss_watch(run_dir, config), False
                loader = _loader(config, stage, state.step)
                stop_flag.saved(saver.longest_seconds)  # this was no step
                continue
            is_last = state.step == config.train.num_steps
            if stage.validate and (is_last or state.step % config.train.validate_every == 0):
                watchdog.touch(state.step, "validation")
                with isolated(engine):
                    scores = stage.validate(engine)
                    samples = stage.generate() if stage.generate else []
                log.write({"step": state.step, **scores, "time": time.time()})
                generation.append(run_dir, state.step, samples)
                line.note(state.step, scores)
            must_stop, has_failed = stop_flag.agreed(saver.has_failed)
            if has_failed:
                saver.give_up()
            is_due |= state.step % config.train.checkpoint_every == 0
            # Among spikes it waits: the checkpoint before them is the one to go back to.
            if is_last or must_stop or (is_due and loss_watch.first_harm is None):
                is_due = False
                watchdog.touch(state.step, "checkpoint")
                saver.save(engine, state, is_last=is_last or must_stop)
                stop_flag.saved(saver.longest_seconds)
            if is_last or must_stop:
                if not saver.finish():
                    raise UserError(f"the last checkpoint of {run_dir} could not be written")
                saver.finish_uploads(partial(watchdog.touch, state.step, "upload"))
            for note in saver.news():
                line.say(note)
            if must_stop and not is_last:
                dist.say(f"saved step {state.step} and stopped; the same command goes on")
                return EXIT_STOPPED
            watchdog.touch(state.step + 1, "data loading")
    except Exception:
        saver.close()
        raise
    finally:
        loader.close()
        log.close()
        line.close()
    dist.say(f"done: step {state.step}, saved in {run_dir}/checkpoints")
    return 0


def _state_at(
    resume_point: Path | None, run_dir: Path, stage: Stage, engine: Engine
) -> tuple[TrainState, list[str]]:
    """Where training goes on, and what has changed in its data since: a line each."""
    if resume_point is None:
        state = TrainState(
            world_size=dist.world_size(),
            zero_stage=engine.stage,
            zero_fingerprint=engine.zero_fingerprint,
        )
        return state, []
    state = checkpoint.resume(resume_point, engine)
    where = str(run_dir / "stream.json")
    changes = stage.stream.resume(read_stream_state(run_dir), state.step, where)
    for note in changes:
        dist.say(f"mllm: {note}")
    dist.barrier()  # every rank has read it
    return state, changes


def _note_problems(
    config: Config, ledger: Ledger, step: int, batches: list, problem: str | None
) -> None:
    """Masked samples, and what was wrong with the step, with its samples."""
    for batch in batches:
        for bad in batch.bad_samples:
            ledger.write({**bad, "step": step})
    if ledger.num_bad_samples > config.train.max_bad_samples:
        raise UserError(
            f"more than train.max_bad_samples {config.train.max_bad_samples} samples were masked; "
            f"{config.run_dir}/ledger.jsonl names them; mend the corpus or raise the limit"
        )
    if problem:
        samples = [key for batch in batches for row in batch.rows for key in row.samples]
        ledger.write({"step": step, "reason": problem, "samples": samples})


def _step(
    config: Config,
    stage: Stage,
    engine: Engine,
    state: TrainState,
    step: int,
    batches: list,
    meter: StepMeter,
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
        with meter.forward():
            loss_sum, losses = engine(stage.prepare(batch))
        engine.backward(loss_sum / max(1.0, global_count))
        engine.micro_step()
        totals = [a + b for a, b in zip(totals, stage.totals(batch, losses), strict=True)]
    result = engine.result()
    sums = dist.all_reduce_sum([*totals, *meter.of_this_rank()])
    if result.applied:
        state.applied_steps += 1
        state.skipped_in_a_row = 0
        if engine.average is not None:
            engine.average.update(state.applied_steps)
    else:
        state.skipped_in_a_row += 1
    values = {
        "step": step + 1,
        **stage.summary(sums[: stage.num_totals]),
        "grad_norm": result.grad_norm,
        "lr": rate,
        "applied": result.applied,
        "skipped_steps": step + 1 - state.applied_steps,
    }
    if result.loss_scale is not None:
        values["loss_scale"] = result.loss_scale
    return values | meter.finish(values, sums[stage.num_totals :])


def _loader(config: Config, stage: Stage, start_step: int) -> Loader:
    return Loader(
        stage.stream,
        start_step=start_step,
        end_step=config.train.num_steps,
        rank=dist.rank(),
        world_size=dist.world_size(),
        micro_batch_size=config.train.micro_batch_size,
        num_workers=config.data.num_workers,
        pin_memory=dist.device().type == "cuda",
    )


def _loss_watch(run_dir: Path, config: Config) -> LossWatch:
    """Knows the losses so far, as rank 0 reads them."""
    past = None
    if dist.rank() == 0:
        past = recent_steps(run_dir / "metrics.jsonl", config.train.spike_window)
    return LossWatch(config.train, dist.broadcast_object(past))


def _open_log(run_dir: Path, config: Config, step: int) -> MetricsLog:
    train = config.train
    if dist.rank() != 0:
        return MetricsLog(run_dir, is_writer=False)
    sinks = open_sinks(train.sinks, run_dir, train.sink_project, config.to_dict(), step)
    return MetricsLog(run_dir, is_writer=True, sinks=sinks)


def _sizes(stage: Stage, engine: Engine, config: Config) -> str:
    counts = count_parameters(stage.objective.model)
    parts = ", ".join(
        f"{name} {n:,} ({free:,} trainable)" for name, (n, free) in counts.items() if n
    )
    return (
        f"{parts}; {config.train.num_steps} steps of {config.train.global_batch_size} rows on "
        f"{dist.world_size()} ranks, {engine.precision}, ZeRO-{engine.stage}"
    )


def run_rank(argv: list[str]) -> int:
    """`main`, with what the user can mend told once a node."""
    try:
        return main(argv)
    except UserError as error:
        if dist.is_first_of_node():
            print(f"mllm: error: {error}", file=sys.stderr, flush=True)
        return 2


if __name__ == "__main__":
    try:
        code = run_rank(sys.argv[1:])
    except SystemExit as end:  # a second signal, or a rank that failed
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(end.code or 0))  # a thread that writes a checkpoint may be anywhere
    sys.exit(code)
