"""`mllm train`: starts the ranks of one machine, passes signals on to them, and waits.

The `deepspeed` runner does not pass signals on: its ranks would train on as orphans.
"""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import IO

from mllm import dist, replay
from mllm.command import Parser
from mllm.config import load_config
from mllm.engine import check_attention_backend, resolve_precision
from mllm.errors import UserError

TRAIN = Path(__file__).resolve().parent / "train.py"
GRACE_SECONDS = 30.0  # for the other ranks once one has failed


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="mllm train",
        description=__doc__,
        epilog="mllm train mllm/configs/demo_cpu.yaml --num-ranks 2\n"
        "mllm train mllm/configs/demo_cpu.yaml train.num_steps=20 run_dir=runs/try\n"
        "mllm train runs/try/config.yaml --replay 17",
    )
    parser.add_argument("config", help="a YAML file; see mllm/configs/")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--num-ranks", type=int, default=1, help="processes on this machine")
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
    if args.num_ranks < 1:
        raise UserError(f"--num-ranks {args.num_ranks}: use 1 or more")
    # A typo, or what this machine cannot run, is told before any process starts.
    config = load_config(args.config, args.overrides)
    check_attention_backend(config, resolve_precision(config.train.precision))
    if args.replay is not None:
        return replay.main(config, args.replay, args.json)
    return run_ranks([str(TRAIN), args.config, *args.overrides], args.num_ranks)


def run_ranks(
    command: list[str],
    num_ranks: int,
    *,
    environment: dict[str, str] | None = None,
    output: IO[str] | None = None,
    seconds: float = math.inf,
) -> int:
    """Runs Python as `num_ranks` processes; the exit code is the first that is not 0.

    Args:
        command: what follows `python`.
        environment: variables of the ranks beside those of this process.
        output: where the ranks print; None: where this process does.
        seconds: after which the ranks are killed.

    Raises:
        TimeoutError: they were.
    """
    port = dist.free_port()
    ranks = []
    for rank in range(num_ranks):
        variables = {
            **os.environ,
            **(environment or {}),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(num_ranks),
            "LOCAL_WORLD_SIZE": str(num_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        # A group of its own: Ctrl-C reaches the ranks through us, once.
        ranks.append(
            subprocess.Popen(
                [sys.executable, *command],
                env=variables,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        )

    def pass_on(number: int, _: FrameType | None) -> None:
        _signal_running(ranks, signal.SIGTERM if number == signal.SIGINT else number)

    handled = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.signal(number, pass_on) for number in handled}
    try:
        return _wait(ranks, time.monotonic() + seconds)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(ranks: list[subprocess.Popen], end: float) -> int:
    """Waits for all; once one fails, ends the others. The first to fail is the cause.

    Raises:
        TimeoutError: some still ran at `end`, on the monotonic clock.
    """
    cause: tuple[int, int] | None = None  # rank, exit code
    deadline = 0.0
    while True:
        codes = {rank: process.poll() for rank, process in enumerate(ranks)}
        ended = {rank: code for rank, code in codes.items() if code is not None}
        failed = [(rank, code) for rank, code in ended.items() if code not in (0, 75)]
        if failed and cause is None:
            # A rank that a signal ended comes first: the others fail at their next collective.
            cause = min(failed, key=lambda entry: entry[1])
            deadline = time.monotonic() + GRACE_SECONDS
            _signal_running(ranks, signal.SIGTERM)
        if len(ended) == len(ranks):
            break
        if cause is not None and time.monotonic() > deadline:
            _signal_running(ranks, signal.SIGKILL)
        if time.monotonic() > end:
            _signal_running(ranks, signal.SIGKILL)
            for process in ranks:
                process.wait()
            raise TimeoutError
        time.sleep(0.1)
    if cause is None:
        return max(ended.values())
    rank, code = cause
    if code != 2:  # the rank has already said what the user can mend
        print(f"mllm: rank {rank} ended with {code}", file=sys.stderr)
    return code if code > 0 else 1


def _signal_running(ranks: list[subprocess.Popen], number: int) -> None:
    for process in ranks:
        if process.poll() is None:
            process.send_signal(number)
