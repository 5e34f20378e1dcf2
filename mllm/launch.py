"""`mllm train`: starts the ranks of this machine, passes signals on to them, and waits.

The `deepspeed` runner does not pass signals on: its ranks would train on as orphans.
"""

import argparse
import itertools
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from mllm import dist, replay
from mllm.command import Parser
from mllm.config import load_config
from mllm.errors import UserError
from mllm.heartbeat import Failure, Heartbeats, killed
from mllm.preflight import check_config

TRAIN = Path(__file__).resolve().parent / "train.py"
MASTER_PORT = 29500  # of several nodes; one node takes a free port
GRACE_SECONDS = 30.0  # for the other ranks once one has failed
KILL_SECONDS = 5.0  # after a second signal, which means now
STACK_SECONDS = 3.0  # for a stack, of those that have not ended then
EXAMPLES = """\
mllm train mllm/configs/demo_cpu.yaml --num-ranks 2
mllm train mllm/configs/demo_cpu.yaml train.num_steps=20 run_dir=runs/try
mllm train runs/try/config.yaml --replay 17

Two nodes of eight GPUs that share the run folder, and the same by DeepSpeed's launcher, which
reaches the nodes by ssh (with --no_ssh it is started on each, as above):
  mllm train CONFIG --num-ranks 8 --nnodes 2 --node-rank 0 --master-addr node0   # on node0
  mllm train CONFIG --num-ranks 8 --nnodes 2 --node-rank 1 --master-addr node0   # on node1
  deepspeed --hostfile hosts mllm/train.py CONFIG     # hosts: a line `node0 slots=8` for each node
torchrun, `srun python mllm/train.py CONFIG` and mpirun are understood too."""


@dataclass(frozen=True)
class Node:
    """One of several machines, all with as many ranks."""

    num_ranks: int
    number: int = 0
    num_nodes: int = 1
    master_addr: str = "127.0.0.1"
    master_port: int = field(default_factory=dist.free_port)

    @property
    def world_size(self) -> int:
        return self.num_nodes * self.num_ranks

    def variables(self, local_rank: int) -> dict[str, str]:
        """What a rank finds its place by."""
        return {
            "RANK": str(self.number * self.num_ranks + local_rank),
            "LOCAL_RANK": str(local_rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_WORLD_SIZE": str(self.num_ranks),
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": str(self.master_port),
        }


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="mllm train",
        description=__doc__,
        epilog=EXAMPLES,
    )
    parser.add_argument("config", help="a YAML file; see mllm/configs/")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--num-ranks", type=int, default=1, help="processes on this machine")
    nodes = parser.add_argument_group("several nodes: the same command on each, with its number")
    nodes.add_argument("--nnodes", type=int, default=1, help="how many; all have --num-ranks")
    nodes.add_argument("--node-rank", type=int, help="this one's number, from 0")
    nodes.add_argument("--master-addr", help="node 0, as the others reach it")
    nodes.add_argument("--master-port", type=int, help=f"free on node 0; default {MASTER_PORT}")
    parser.add_argument(
        "--replay",
        type=int,
        metavar="STEP",
        help="train nothing; run one step of metrics.jsonl again, on one process, with the weights "
        "of the newest checkpoint before it, and print the loss of each of its samples",
    )
    parser.add_argument("--json", action="store_true", help="with --replay: JSON lines on stdout")
    args = parser.parse_intermixed_args(argv)
    if args.json and args.replay is None:
        raise UserError("--json goes with --replay; a training run writes metrics.jsonl")
    node = _node(args)
    # A typo, or what this machine cannot run, is told before any process starts.
    config = load_config(args.config, args.overrides)
    if args.replay is not None:
        return replay.main(config, args.replay, args.json)
    check_config(config, node.world_size)
    command = [str(TRAIN), args.config, *args.overrides]
    return run_ranks(command, args.num_ranks, node=node, run_dir=Path(config.run_dir))


def _node(args: argparse.Namespace) -> Node:
    if args.num_ranks < 1:
        raise UserError(f"--num-ranks {args.num_ranks}: use 1 or more")
    if args.nnodes < 1:
        raise UserError(f"--nnodes {args.nnodes}: use 1 or more")
    given = {
        "--node-rank": args.node_rank,
        "--master-addr": args.master_addr,
        "--master-port": args.master_port,
    }
    if args.nnodes == 1:
        for option, value in given.items():
            if value not in (None, 0):
                raise UserError(f"{option} {value} is for several nodes: give --nnodes too")
        return Node(num_ranks=args.num_ranks)
    for option in ("--node-rank", "--master-addr"):
        if given[option] is None:
            raise UserError(f"--nnodes {args.nnodes} needs {option} (see `mllm train --help`)")
    if not 0 <= args.node_rank < args.nnodes:
        raise UserError(
            f"--node-rank {args.node_rank}: the {args.nnodes} nodes are 0 to {args.nnodes - 1}"
        )
    return Node(
        num_ranks=args.num_ranks,
        number=args.node_rank,
        num_nodes=args.nnodes,
        master_addr=args.master_addr,
        master_port=args.master_port or MASTER_PORT,
    )


def run_ranks(
    command: list[str],
    num_ranks: int,
    *,
    node: Node | None = None,
    run_dir: Path | None = None,
    environment: dict[str, str] | None = None,
    output: IO[str] | None = None,
    seconds: float = math.inf,
) -> int:
    """Runs Python as `num_ranks` processes; the exit code is the first that is not 0.

    Args:
        command: what follows `python`.
        node: this one's place among several.
        run_dir: where ranks of other nodes look for the first failure.
        environment: variables of the ranks beside those of this process.
        output: where the ranks print; None: where this process does.
        seconds: after which the ranks are killed.

    Raises:
        TimeoutError: they were.
    """
    node = node or Node(num_ranks=num_ranks)
    ranks = {}
    for local_rank in range(num_ranks):
        variables = {**os.environ, **(environment or {}), **node.variables(local_rank)}
        # A group of its own: Ctrl-C reaches the ranks through us, once.
        ranks[int(variables["RANK"])] = subprocess.Popen(
            [sys.executable, *command],
            env=variables,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )

    num_signals = itertools.count(1)

    def pass_on(number: int, _: FrameType | None) -> None:
        _signal_running(ranks, signal.SIGTERM if number == signal.SIGINT else number)
        if next(num_signals) == 2:  # a rank inside a collective does not hear it
            kill = threading.Timer(KILL_SECONDS, _signal_running, (ranks, signal.SIGKILL))
            kill.daemon = True
            kill.start()

    handled = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.signal(number, pass_on) for number in handled}
    try:
        return _wait(ranks, time.monotonic() + seconds, run_dir)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(ranks: dict[int, subprocess.Popen], end: float, run_dir: Path | None) -> int:
    """Waits for all; once one fails, ends the others. The first to fail is the cause.

    Raises:
        TimeoutError: some still ran at `end`, on the monotonic clock.
    """
    cause: tuple[int, int] | None = None  # rank, exit code
    notes = run_dir and Heartbeats(run_dir)
    noted_before = notes and notes.failure()
    failed_at = 0.0
    while True:
        codes = {rank: process.poll() for rank, process in ranks.items()}
        ended = {rank: code for rank, code in codes.items() if code is not None}
        failed = [(rank, code) for rank, code in ended.items() if code not in (0, 75)]
        if failed and cause is None:
            # A rank that a signal ended comes first: the others fail at their next collective.
            cause = min(failed, key=lambda entry: entry[1])
            failed_at = time.monotonic()
            _signal_running(ranks, signal.SIGTERM)
            _signal_running(ranks, signal.SIGCONT)  # a stopped one heeds no other
            if cause[1] < 0 and notes:  # it could not tell the ranks of other nodes
                text = killed(cause[0], socket.gethostname(), -cause[1])
                notes.note(Failure([cause[0]], text))
        if len(ended) == len(ranks):
            break
        if cause is not None:
            _press(ranks, time.monotonic() - failed_at)
        if time.monotonic() > end:
            _signal_running(ranks, signal.SIGKILL)
            for process in ranks.values():
                process.wait()
            raise TimeoutError
        time.sleep(0.1)
    if cause is None:
        return max(ended.values())
    rank, code = cause
    noted = notes and notes.failure()
    if code < 0:
        print(f"mllm: {killed(rank, socket.gethostname(), -code)}", file=sys.stderr)
    elif code != 2:  # a rank has already said what the user can mend
        why = noted.text if noted and noted != noted_before else f"rank {rank} failed first"
        print(f"mllm: {why}; exit code {code}", file=sys.stderr)
    return code if code > 0 else 1


def _press(ranks: dict[int, subprocess.Popen], seconds: float) -> None:
    """What a rank gets that has not ended `seconds` after another one failed."""
    if seconds > GRACE_SECONDS + STACK_SECONDS:
        _signal_running(ranks, signal.SIGKILL)
    elif seconds > GRACE_SECONDS:
        _signal_running(ranks, signal.SIGABRT)  # faulthandler shows its stack


def _signal_running(ranks: dict[int, subprocess.Popen], number: int) -> None:
    for process in ranks.values():
        if process.poll() is None:
            process.send_signal(number)
