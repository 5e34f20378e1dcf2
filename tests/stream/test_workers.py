"""Loader workers as real processes: order, errors, deaths, what they import and leave behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from mllm.errors import UserError
from mllm.stream import workers
from mllm.stream.loader import Loader
from mllm.stream.parcel import pack
from mllm.stream.stream import TokenStream
from mllm.stream.workers import Workers, check_shared_memory

SPLIT = dict(rank=0, world_size=1, micro_batch_size=4)


class FailingStream(TokenStream):
    """Fails at step 3, in the way that `failure` says."""

    failure = "error"

    def __reduce__(self):
        build, (_, arguments) = super().__reduce__()
        return build, (type(self), arguments)

    def batch(self, step, micro_step=0, **split):
        if step == 3:
            self.fail()
        return super().batch(step, micro_step, **split)

    def fail(self):
        raise TwoPartError("part one", "part two")


class TwoPartError(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class UserErrorStream(FailingStream):
    def fail(self):
        raise UserError("data.mixture: a disk is gone")


class KilledStream(FailingStream):
    def fail(self):
        os.kill(os.getpid(), signal.SIGKILL)


class CuriousStream(TokenStream):
    """Puts what a worker has imported, and its threads, into the sample list of its rows."""

    def batch(self, step, micro_step=0, **split):
        batch = super().batch(step, micro_step, **split)
        batch.rows[0].samples[:] = [*sys.modules, f"threads={torch.get_num_threads()}"]
        return batch


def remade(kind, stream):
    return kind(**stream._arguments)


def steps_until_error(loader):
    steps = []
    try:
        for step, _ in loader:
            steps.append(step)
    except Exception as error:
        return steps, error
    raise AssertionError("no error")


def test_a_parcel_holds_what_was_packed(stream):
    batches = [stream.batch(0, micro, rank=0, world_size=1, micro_batch_size=2) for micro in (0, 1)]
    for shared in (False, True):
        found = pack(batches, shared=shared).unpack()
        for one, two in zip(batches, found, strict=True):
            for name, value in vars(one).items():
                other = getattr(two, name)
                if isinstance(value, torch.Tensor):
                    assert value.dtype == other.dtype and torch.equal(value, other)
                    assert other.is_shared() == shared
                    assert other.data_ptr() % 64 == 0
                else:
                    assert value == other


def test_workers_give_the_batches_of_one_process_in_shared_memory(stream):
    with Loader(stream, **SPLIT, end_step=7, num_workers=2) as loader:
        for expected_step, (step, batches) in enumerate(loader):
            assert step == expected_step
            for micro_step, batch in enumerate(batches):
                expected = stream.batch(step, micro_step, **SPLIT)
                assert batch.rows == expected.rows
                assert batch.image_seeds == expected.image_seeds
                assert torch.equal(batch.token_ids, expected.token_ids)
                assert torch.equal(batch.pixels, expected.pixels)
                assert batch.pixels.is_shared()
        assert step == 6


@pytest.mark.parametrize("kind", [FailingStream, UserErrorStream])
def test_an_error_in_a_worker_comes_at_its_step_with_its_traceback(stream, kind):
    steps, error = steps_until_error(Loader(remade(kind, stream), **SPLIT, num_workers=2))
    assert steps == [0, 1, 2]
    if kind is UserErrorStream:
        assert type(error) is UserError and str(error) == "data.mixture: a disk is gone"
    else:
        assert str(error) == "TwoPartError: part one and part two"
    assert "in fail" in str(error.__cause__) and "test_workers.py" in str(error.__cause__)


@pytest.mark.slow
def test_a_killed_worker_is_an_error_that_names_it_while_the_loop_waits(stream):
    loader = Loader(remade(KilledStream, stream), **SPLIT, num_workers=2)
    pids = [process.pid for process in loader._producer.processes]
    began = time.monotonic()
    steps, error = steps_until_error(loader)
    assert time.monotonic() - began < 20
    assert steps == list(range(len(steps))) and len(steps) <= 3
    assert isinstance(error, UserError) and "\n" not in str(error)
    assert any(f"loader worker {pid} was killed by SIGKILL" in str(error) for pid in pids)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_workers_import_neither_engine_nor_models_and_use_one_thread(stream):
    """The trainer's own imports are seconds and hundreds of megabytes in each process."""
    with Loader(remade(CuriousStream, stream), **SPLIT, num_workers=1, end_step=1) as loader:
        _, batches = next(loader)
    found = set(batches[0].rows[0].samples)
    assert "mllm.stream.stream" in found and "threads=1" in found
    heavy = {"deepspeed", "transformers", "numba", "scipy", "pandas", "matplotlib", "mllm.engine"}
    assert not found & heavy


def test_the_trainers_random_numbers_are_not_touched(stream):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with Loader(stream, **SPLIT, num_workers=1, end_step=1) as loader:
        list(loader)
    assert torch.equal(torch.rand(3), expected)


def test_prefetch_is_bounded(stream):
    assert prefetched(stream, num_workers=2, prefetch_steps=4) == 4
    assert prefetched(stream, num_workers=2, prefetch_steps=1) == 2


def prefetched(stream, num_workers, prefetch_steps):
    asked = []

    class Asked:
        """Steps, noted when the loader asks for them."""

        def __iter__(self):
            for step in range(100):
                asked.append(step)
                yield step

        def __getitem__(self, number):
            return number

    started = Workers(
        stream,
        SPLIT,
        Asked(),
        num_workers=num_workers,
        prefetch_steps=prefetch_steps,
        pin_memory=False,
    )
    time.sleep(0.5)
    started.close()
    return len(asked)


def test_too_little_shared_memory_is_said_before_the_first_step(monkeypatch, stream):
    check_shared_memory(1 << 20, 4)
    with pytest.raises(UserError, match=r"/dev/shm has .* need .* data.num_workers to 0"):
        check_shared_memory(1 << 40, 4)
    monkeypatch.setattr(TokenStream, "bytes_per_step", lambda *_: 1 << 40)
    with pytest.raises(UserError, match="--shm-size"):
        Loader(stream, **SPLIT, num_workers=1)


def test_the_size_of_a_step_is_estimated_from_above(stream):
    for step in range(5):
        batches = workers.compose(stream, step, SPLIT)
        assert len(pack(batches, shared=False).block) < 1.5 * stream.bytes_per_step(step, 1) + 20000


def script(config_path, body):
    return f"""
import multiprocessing, os, sys, time
from mllm.config import load_config
from mllm.stream.loader import Loader
from mllm.stream.stream import TokenStream
if __name__ == "__main__":
    # Semaphores are named by this in all its children, so a test can tell them from others'.
    multiprocessing.current_process()._config["semprefix"] = f"/mp-loop{{os.getpid()}}-"
    stream = TokenStream.from_config(load_config({str(config_path)!r}))
    with Loader(stream, rank=0, world_size=1, micro_batch_size=2, num_workers=2) as loader:
        for step, _ in loader:
            if step == 0:
                print(*[process.pid for process in loader._producer.processes], flush=True)
            {body}
"""


def start(tmp_path, config, body="time.sleep(0.05)"):
    path = tmp_path / "loop.py"
    path.write_text(script(config, body))
    process = subprocess.Popen(
        [sys.executable, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    assert any(name.startswith(f"sem.mp-loop{process.pid}-") for name in os.listdir("/dev/shm"))
    return process, [int(pid) for pid in line.split()]


def assert_nothing_left(process, worker_pids):
    end = time.monotonic() + 15
    while time.monotonic() < end:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError("a process of the group is left")
    own = [f"sem.mp-loop{process.pid}-", *(f"torch_{pid}_" for pid in (process.pid, *worker_pids))]
    assert not [name for name in os.listdir("/dev/shm") if name.startswith(tuple(own))]


@pytest.mark.slow
def test_ctrl_c_to_the_whole_group_reaches_the_loop_alone_and_leaves_nothing(config, tmp_path):
    process, pids = start(tmp_path, config)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert errors.count("KeyboardInterrupt") == 1, errors
    assert_nothing_left(process, pids)


@pytest.mark.slow
def test_workers_survive_signals_that_the_trainer_catches(config, tmp_path):
    body = """
            import signal
            signal.signal(signal.SIGINT, lambda *_: None)
            signal.signal(signal.SIGTERM, lambda *_: None)
            if step == 2:
                os.killpg(0, signal.SIGTERM); os.killpg(0, signal.SIGINT)
            if step == 40:
                print("reached", flush=True); break
"""
    process, pids = start(tmp_path, config, body)
    out, errors = process.communicate(timeout=60)
    assert out == "reached\n", errors
    assert process.returncode == 0
    assert_nothing_left(process, pids)


@pytest.mark.slow
def test_workers_end_when_the_trainer_is_killed(config, tmp_path):
    process, pids = start(tmp_path, config, "time.sleep(60)")
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=10)
    assert len(pids) == 2
    assert_nothing_left(process, pids)


@pytest.mark.slow
def test_a_worker_killed_while_the_loop_trains_is_one_line(config, tmp_path):
    process, pids = start(tmp_path, config)
    os.kill(pids[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=30)
    assert f"loader worker {pids[0]} was killed by SIGKILL" in errors.splitlines()[-1]
    assert process.returncode == 1


def test_no_thread_is_left(stream):
    before = set(threading.enumerate())
    with Loader(stream, **SPLIT, num_workers=1, end_step=2) as loader:
        list(loader)
    assert not [t for t in set(threading.enumerate()) - before if t.is_alive() and not t.daemon]
