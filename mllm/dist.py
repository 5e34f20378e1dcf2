"""Rank, world size and the few collectives the loop needs; everything works as one process."""

import os
from typing import TYPE_CHECKING, Any

from mllm.environment import free_port as free_port
from mllm.environment import interface_to, rank_variables

if TYPE_CHECKING:  # `mllm stop` would wait for torch
    import torch


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))


def is_first_of_node() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"


def device() -> "torch.device":
    """This rank's accelerator, or the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", local_rank())
    return torch.device("cpu")


def set_up_environment() -> None:
    """Makes the variables that torch and DeepSpeed look at, by whoever started this rank.

    Also shares the cores out, and names gloo the network that leads to the other nodes: by itself
    it takes the one that this host's name stands for, which may be the loopback.
    """
    import torch

    os.environ.update(rank_variables(os.environ))
    ranks_here = int(os.environ["LOCAL_WORLD_SIZE"])
    if torch.cuda.is_available():
        # srun may show each rank one GPU, which is then number 0.
        os.environ["LOCAL_RANK"] = str(local_rank() % torch.cuda.device_count())
    if world_size() > ranks_here:
        interface = interface_to(os.environ["MASTER_ADDR"])
        if interface not in (None, "lo"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", str(interface))
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks_here))


def say(message: str) -> None:
    """Prints on rank 0."""
    if rank() == 0:
        print(message, flush=True)


def all_reduce_sum(values: list[float]) -> list[float]:
    """Sums a short list over ranks, in float64."""
    if world_size() == 1:
        return values
    import torch

    total = torch.tensor(values, dtype=torch.float64, device=device())
    torch.distributed.all_reduce(total)
    return total.tolist()


def broadcast_object(value: Any) -> Any:
    """Rank 0's value, everywhere."""
    if world_size() == 1:
        return value
    import torch

    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def first_problem(problem: str | None) -> str | None:
    """The lowest rank's problem, everywhere, so that all ranks stop by it. None: none has one."""
    problems: list[str | None] = [problem]
    if world_size() > 1:
        import torch

        problems = [None] * world_size()
        torch.distributed.all_gather_object(problems, problem)
    return next((text for text in problems if text is not None), None)


def barrier() -> None:
    if world_size() > 1:
        import torch

        torch.distributed.barrier()
