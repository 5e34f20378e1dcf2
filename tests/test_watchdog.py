"""A rank that fails, dies, stops or hangs ends the job in time, and its name is told.

python -m pytest -m slow tests/test_watchdog.py    # real training, faults planted in rank 1
"""

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from mllm.dist import free_port
from mllm.heartbeat import Beat, Failure, Heartbeats, judge
from mllm.launch import run_ranks
from tests.conftest import World
from tests.scenarios import pretrain_config

HOST = socket.gethostname()
FAULTY_TRAIN = Path(__file__).with_name("faulty_train.py")
BIN = Path(sys.executable).parent


def beat(rank: int, step: int = 17, phase: str = "step", **changes: object) -> Beat:
    """Of a rank of another host that waits in a collective."""
    values = {"host": f"node{rank}", "pid": 1, "waits": True, "count": 5} | changes
    return Beat(rank=rank, step=step, phase=phase, **values)  # type: ignore[arg-type]


def judged(*after: Beat, is_hang: bool = True) -> tuple[list[int], str]:
    """As if the ranks had beaten once between two looks, but for those whose count is 0."""
    before = {b.rank: replace(b, count=max(0, b.count - 1)) for b in after}
    return judge(before, {b.rank: b for b in after}, is_hang=is_hang, seconds=30)


def test_the_rank_that_computes_while_the_others_wait_is_behind() -> None:
    ranks, text = judged(
        beat(0), beat(1, phase="data loading", waits=False), beat(2), beat(3, step=18)
    )
    assert ranks == [1]
    assert text == (
        "rank 1 on node1 did not come beyond step 17 (data loading) in 30 s; ranks 0, 2, 3 waited"
    )


def test_where_nobody_is_seen_in_a_collective_the_earliest_place_is_behind() -> None:
    """As with NCCL, which queues a collective and waits elsewhere."""
    ranks, _ = judged(
        beat(0, waits=False), beat(1, phase="data loading", waits=False), beat(2, waits=False)
    )
    assert ranks == [1]


def test_when_all_wait_no_rank_is_blamed_but_the_network() -> None:
    ranks, text = judged(beat(0, step=18), beat(1))
    assert ranks == [] and "the network between node0 and node1" in text
    ranks, text = judged(beat(0, waits=False), beat(1), is_hang=False)
    assert ranks == [] and "all ranks live" in text


def test_a_silent_rank_is_blamed_before_a_slow_one() -> None:
    ranks, text = judged(beat(0), beat(1, count=0), beat(2, waits=False))
    assert ranks == [1] and "rank 1 on node1 gave no sign of life after step 17 (step)" in text
    # One that has told how it ended is silent for that reason.
    ranks, _ = judged(beat(0, count=0, ended="failed"), beat(1, waits=False), beat(2))
    assert ranks == [1]


def test_a_dead_process_of_this_host_is_seen_at_once() -> None:
    child = subprocess.Popen(["true"])
    time.sleep(0.3)  # dead, and not yet collected
    ranks, text = judged(beat(0), beat(1, host=HOST, pid=child.pid), is_hang=False)
    child.wait()
    assert ranks == [1] and f"process {child.pid} was killed" in text
    assert judged(beat(0), beat(1, host=HOST, pid=os.getpid()), is_hang=False)[0] == []


def test_a_hundred_silent_ranks_are_one_short_line() -> None:
    _, text = judged(beat(0), *(beat(rank, count=0) for rank in range(1, 200)))
    assert "ranks 1, 2, 3, 4, 5, 6, 7, 8 and 191 more" in text and len(text) < 300


def test_the_first_failure_stands(tmp_path: Path) -> None:
    files = Heartbeats(tmp_path)
    files.clear()
    first = files.note(Failure([1], "rank 1 failed"))
    assert files.note(Failure([0], "rank 0 lost rank 1")) == first == files.failure()
    files.write(beat(0))
    files.write(beat(0, step=18))
    assert files.read() == {0: beat(0, step=18)}
    files.clear()
    assert files.failure() is None and files.read() == {}


HANG = """
import sys, time
from pathlib import Path
from mllm.watchdog import watch
def asleep_here():
    time.sleep(60)
with watch(Path(sys.argv[1]), 1.0) as watchdog:
    for step in range(1, 4):
        watchdog.touch(step, "step")
        time.sleep(0.6)  # below the limit each, beyond it together
    watchdog.touch(step, "validation")
    asleep_here()
"""


def test_a_process_that_hangs_shows_where_and_ends(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANG, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert f"mllm: rank 0 on {HOST} did not come beyond step 3 (validation) in 1 s" in done.stderr
    for text in (done.stderr, (tmp_path / "hang-rank-0.txt").read_text()):
        assert "in asleep_here" in text and "rank 0 on" in text


def test_it_ends_where_folder_and_reader_are_gone(tmp_path: Path) -> None:
    code = HANG.replace("    asleep_here()\n", "    shutil.rmtree(sys.argv[1]); asleep_here()\n")
    reader, writer = os.pipe()
    command = [sys.executable, "-c", "import shutil" + code, str(tmp_path / "run")]
    (tmp_path / "run").mkdir()
    process = subprocess.Popen(command, stderr=writer, stdout=writer)
    os.close(reader)
    os.close(writer)
    assert process.wait(timeout=120) == 1


# ------------------------------------------------------------------------- real training


def config_file(world: World, run_dir: Path, hang_timeout_seconds: int = 600) -> Path:
    config = pretrain_config(world.root, run_dir)
    values = json.loads(json.dumps(config.to_dict()))
    values["train"] |= {"num_steps": 10_000, "hang_timeout_seconds": hang_timeout_seconds}
    path = run_dir.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(values))
    return path


def after_step_4(run_dir: Path) -> float:
    """Seconds since the last line that the ranks wrote together."""
    return (
        time.time() - json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])["time"]
    )


TEXTS = {
    "raise": "failed at step 5 (data loading): ValueError: planted",
    "hang": "did not come beyond step 5 (data loading) in 6 s; rank 0 waited",
    "kill": "was killed by signal 9 (out of memory? see dmesg)",
    "stop": "is stopped (`kill -CONT",
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", TEXTS)
def test_a_fault_of_rank_1_ends_the_job_by_its_name(
    world: World, tmp_path: Path, fault: str
) -> None:
    run_dir = tmp_path / "run"
    log = tmp_path / "log"
    config = config_file(world, run_dir, 6 if fault in ("hang", "stop") else 600)
    command = [str(FAULTY_TRAIN), "1", "4", fault, str(config)]
    with log.open("w") as output:
        code = run_ranks(command, 2, run_dir=run_dir, output=output, seconds=600)
    text = log.read_text()
    assert code == 1, text
    assert after_step_4(run_dir) < 6 + 15, text  # the limit, two looks, and the end of a process
    told = [line for line in text.splitlines() if line.startswith(f"mllm: rank 0 on {HOST} stops:")]
    assert len(told) == 1 and f"rank 1 on {HOST}" in told[0], text
    if fault == "kill":
        # Beats are seconds apart: a short run may have been seen at its start-up alone.
        assert "died, last seen at" in told[0] or TEXTS["kill"] in told[0]
    else:
        assert TEXTS[fault] in told[0]
    # Its own stack, with its name on each line; none of the rank that only waited.
    stack = [line for line in text.splitlines() if line.startswith(f"[rank 1 on {HOST}]")]
    assert any("faulty_train.py" in line for line in stack) == (fault != "kill"), text
    assert f"[rank 0 on {HOST}]" not in text and "\nTraceback" not in text
    assert (run_dir / "hang-rank-1.txt").exists() or fault != "hang"


@pytest.mark.slow
def test_deepspeeds_launcher_and_torchrun_too(world: World, tmp_path: Path) -> None:
    """An exception under the one, a mistake of the user's under the other, of rank 1 alone."""
    for fault, code, launcher in (
        ("raise", 1, ["deepspeed", "--num_accelerators", "2", "--master_port", str(free_port())]),
        ("refuse", 2, ["torchrun", "--nproc-per-node", "2", "--master-port", str(free_port())]),
    ):
        run_dir = tmp_path / fault
        done = subprocess.run(
            [str(BIN / launcher[0]), *launcher[1:]]
            + [str(FAULTY_TRAIN), "1", "4", fault, str(config_file(world, run_dir))],
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode != 0, done.stderr
        assert f"mllm: rank 0 on {HOST} stops: rank 1 on {HOST}" in done.stderr, done.stderr
        mine = [line for line in done.stderr.splitlines() if line.startswith("mllm: error: rank 1")]
        assert mine == ([f"mllm: error: rank 1 on {HOST}: planted; mend it"] if code == 2 else [])
        assert ("ValueError: planted" in done.stderr) == (code == 1)
        failure = Heartbeats(run_dir).failure()
        assert failure is not None and failure.code == code and failure.ranks == [1]


@pytest.mark.slow
def test_two_processes_with_sruns_variables_train_together_to_their_time_limit(
    world: World, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    path = config_file(world, run_dir)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    step = {
        "SLURM_JOB_ID": str(free_port()),  # which the port follows from
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_NODEID": "0",
    }
    train = Path(__file__).parent.parent / "mllm" / "train.py"
    tasks = [
        subprocess.Popen(
            [sys.executable, str(train), str(path), "train.time_limit=0:30"],
            env=clean | step | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [task.communicate(timeout=600)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [75, 75], outputs
    assert "on 2 ranks" in outputs[0] and "mllm: saves and stops before" in outputs[0]
    num_steps = len((run_dir / "metrics.jsonl").read_text().splitlines())
    assert num_steps >= 1 and f"saved step {num_steps} and stopped" in outputs[0]
    assert (run_dir / "checkpoints" / f"step-{num_steps:08d}" / "manifest.json").is_file()
    assert not (run_dir / "ranks").exists()
