"""Two nodes, as two network namespaces with a cable between them and a host name each.

Needs root and `ip`: without them these tests fail, they do not skip.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from mllm.launch import run_ranks
from tests.conftest import World
from tests.scenarios import pretrain_config

ROOT = Path(__file__).parent.parent
TRAIN = ROOT / "mllm" / "train.py"
BIN = Path(sys.executable).parent
NUM_STEPS = 40
CHECKPOINT_EVERY = 10
CUT_AFTER = 12  # steps
HANG_SECONDS = 8
MASTER = ["10.77.0.1", "29555"]


@dataclass
class Nodes:
    """`nodea` (10.77.0.1) and `nodeb` (10.77.0.2)."""

    namespaces: list[str]

    def start(self, node: int, command: list[str], log: Path) -> subprocess.Popen[bytes]:
        """Runs a command in a node, under its host name."""
        shell = 'hostname "$0" && exec "$@"'
        inside = ["ip", "netns", "exec", self.namespaces[node], "unshare", "--uts"]
        with log.open("wb") as output:
            return subprocess.Popen(
                [*inside, "sh", "-c", shell, f"node{'ab'[node]}", *command],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                start_new_session=True,
            )

    def set_link(self, state: str) -> None:
        ip("-n", self.namespaces[0], "link", "set", "cable", state)


def ip(*arguments: str) -> None:
    try:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.fail("two nodes are made with `ip` (iproute2), which is not installed")
    if done.returncode:
        pytest.fail(
            f"two nodes are network namespaces, which need root: `ip {' '.join(arguments)}` said "
            f"{done.stderr.strip()}"
        )


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    names = [f"mllm-{os.getpid()}-{letter}" for letter in "ab"]
    try:
        for name in names:
            ip("netns", "add", name)
        ends = ["netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1]]
        ip("link", "add", "cable", *ends)
        for number, name in enumerate(names, 1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
        yield Nodes(names)
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def losses(run_dir: Path) -> list[float]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


def wait_all(processes: list[subprocess.Popen[bytes]], seconds: float) -> list[int]:
    """Exit codes; what still runs at the end of `seconds` is killed, with its children."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(process.poll() is None for process in processes):
        time.sleep(0.1)
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return [process.wait() for process in processes]


@pytest.mark.slow
def test_two_nodes_train_lose_their_link_and_go_on(
    world: World, tmp_path: Path, nodes: Nodes
) -> None:
    values = json.loads(json.dumps(pretrain_config(world.root, tmp_path / "two").to_dict()))
    values["train"] |= {
        "num_steps": NUM_STEPS,
        "checkpoint_every": CHECKPOINT_EVERY,
        "hang_timeout_seconds": HANG_SECONDS,
    }
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    hosts = tmp_path / "hosts"
    hosts.write_text("nodea slots=1\nnodeb slots=1\n")

    # DeepSpeed's launcher, started on each node; its ranks share the run folder.
    logs = [tmp_path / "first-a.log", tmp_path / "first-b.log"]
    deepspeed = [str(BIN / "deepspeed"), "--hostfile", str(hosts), "--no_ssh"]
    deepspeed += ["--master_addr", MASTER[0], "--master_port", MASTER[1]]
    jobs = [
        nodes.start(k, [*deepspeed, "--node_rank", str(k), str(TRAIN), str(config)], logs[k])
        for k in range(2)
    ]
    metrics = tmp_path / "two" / "metrics.jsonl"
    end = time.monotonic() + 420
    while not metrics.exists() or metrics.read_text().count("\n") < CUT_AFTER:
        if time.monotonic() > end or any(job.poll() is not None for job in jobs):
            wait_all(jobs, 0)
            pytest.fail("\n".join(log.read_text() for log in logs))
        time.sleep(0.05)
    nodes.set_link("down")
    cut = time.monotonic()
    codes = wait_all(jobs, HANG_SECONDS + 60)
    took = time.monotonic() - cut
    texts = [log.read_text() for log in logs]
    print(*texts, f"ended {took:.1f} s after the cut, codes {codes}", sep="\n")
    assert all(codes) and took < HANG_SECONDS + 25
    done = len(losses(tmp_path / "two"))
    assert CUT_AFTER <= done < NUM_STEPS
    for rank, (host, text) in enumerate(zip(("nodea", "nodeb"), texts, strict=True)):
        told = [
            line for line in text.splitlines() if line.startswith(f"mllm: rank {rank} on {host}")
        ]
        assert len(told) == 1 and "the network between nodea and nodeb" in told[0], text
        assert "Traceback" not in text

    # Mended, `mllm train` goes on from the last checkpoint, as if nothing had been.
    nodes.set_link("up")
    logs = [tmp_path / "second-a.log", tmp_path / "second-b.log"]
    options = ["--nnodes", "2", "--master-addr", MASTER[0], "--master-port", MASTER[1]]
    train = [sys.executable, "-m", "mllm.cli", "train", str(config), *options, "--node-rank"]
    codes = wait_all([nodes.start(k, [*train, str(k)], logs[k]) for k in range(2)], 420)
    texts = [log.read_text() for log in logs]
    print(*texts, sep="\n")
    assert codes == [0, 0]
    step = done // CHECKPOINT_EVERY * CHECKPOINT_EVERY
    assert f"at step {step}" in texts[0] and f"done: step {NUM_STEPS}" in texts[0]

    # And as on one node.
    code = run_ranks([str(TRAIN), str(config), f"run_dir={tmp_path / 'one'}"], 2, seconds=420)
    assert code == 0
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    largest = max(abs(a - b) for a, b in zip(one, two, strict=True))
    print(f"{NUM_STEPS} losses on one node and on two: largest difference {largest}")
    assert largest <= 1e-6
