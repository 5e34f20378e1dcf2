"""Rank, world size and the few collectives the loop needs; everything works as one process."""

import os
import socket
from typing import Any

import torch
import torch.distributed as torch_dist


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))


def device() -> torch.device:
    """This rank's accelerator, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", local_rank())
    return torch.device("cpu")


def free_port() -> int:
    """A TCP port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def set_up_environment() -> None:
    """Without a launcher: the variables of a world of one. With one: shares the cores out."""
    if "RANK" not in os.environ:
        os.environ.update(
            RANK="0",
            LOCAL_RANK="0",
            WORLD_SIZE="1",
            LOCAL_WORLD_SIZE="1",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(free_port()),
        )
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks_here))


def say(message: str) -> None:
    """Prints on rank 0."""
    if rank() == 0:
        print(message, flush=True)


def all_reduce_sum(values: list[float]) -> list[float]:
    """Sums a short list over ranks, in float64."""
    if world_size() == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64, device=device())
    torch_dist.all_reduce(total)
    return total.tolist()


def broadcast_object(value: Any) -> Any:
    """Rank 0's value, everywhere."""
    if world_size() == 1:
        return value
    box = [value]
    torch_dist.broadcast_object_list(box, src=0)
    return box[0]


def first_problem(problem: str | None) -> str | None:
    """The lowest rank's problem, everywhere, so that all ranks stop by it. None: none has one."""
    problems: list[str | None] = [problem]
    if world_size() > 1:
        problems = [None] * world_size()
        torch_dist.all_gather_object(problems, problem)
    return next((text for text in problems if text is not None), None)


def barrier() -> None:
    if world_size() > 1:
        torch_dist.barrier()
