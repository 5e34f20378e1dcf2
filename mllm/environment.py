"""Which rank this process is, by whoever started it.

`mllm train`, the `deepspeed` launcher and torchrun give RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR
and MASTER_PORT. `srun` and `mpirun` give variables of their own, from which those are made here.
Without any of them, the process is a world of one.
"""

import re
import socket
from collections.abc import Mapping

from mllm.errors import UserError

DEFAULT_PORT = 29500
# One name in SLURM's list of nodes, with ranges: gpu[01-03,7], r[1-2]n[1-8].
NODES = r"(?:[^,\[\]\s]|\[\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*\])+"


def rank_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

    Raises:
        UserError: some are missing, are no numbers, or contradict each other.
    """
    if "RANK" in environment:
        variables = _of_launcher(environment)
    elif "SLURM_PROCID" in environment and _is_srun(environment):
        variables = _of_slurm(environment)
    elif "OMPI_COMM_WORLD_RANK" in environment:
        variables = _of_openmpi(environment)
    else:
        if environment.get("WORLD_SIZE", "1") != "1":
            raise UserError(
                f"WORLD_SIZE is {environment['WORLD_SIZE']} but RANK is not set; start the ranks "
                "by a launcher, or unset WORLD_SIZE"
            )
        variables = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    _check(variables)
    return variables


def free_port() -> int:
    """A TCP port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _of_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    names = ["RANK", "WORLD_SIZE", "LOCAL_RANK"]
    if environment.get("WORLD_SIZE") != "1":
        names += ["MASTER_ADDR", "MASTER_PORT"]
    missing = [name for name in names if name not in environment]
    if missing:
        raise UserError(
            f"RANK is set but {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not; "
            "set all that a launcher sets, or unset RANK"
        )
    # The deepspeed launcher has its own name for the ranks of a node.
    here = environment.get("LOCAL_WORLD_SIZE") or environment.get("LOCAL_SIZE")
    return {
        **{name: environment[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")},
        "LOCAL_WORLD_SIZE": here or environment["WORLD_SIZE"],
        "MASTER_ADDR": environment.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": environment.get("MASTER_PORT") or str(free_port()),
    }


def _is_srun(environment: Mapping[str, str]) -> bool:
    """Whether `srun` started this process.

    A batch script has SLURM_PROCID too, as the one process that it is, and is refused where the
    job has room for more: it would wait for them for ever, or leave them idle.
    """
    if any(name in environment for name in ("SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS")):
        return True
    if environment["SLURM_PROCID"] != "0":
        return True
    if environment.get("SLURM_NTASKS", "1") != "1":
        raise UserError(
            f"SLURM_NTASKS is {environment['SLURM_NTASKS']} but this is not a step of `srun`; "
            "start it by `srun python mllm/train.py CONFIG`, or by `mllm train --num-ranks N`"
        )
    return False


def _of_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    size = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS")
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    nodes = nodes or environment.get("SLURM_NODELIST")
    lacking = [
        name
        for name, value in (
            ("SLURM_NTASKS", size),
            ("SLURM_LOCALID", environment.get("SLURM_LOCALID")),
            ("SLURM_STEP_NODELIST", nodes or environment.get("MASTER_ADDR")),
        )
        if value is None
    ]
    if lacking:
        raise UserError(
            f"SLURM_PROCID is set but {', '.join(lacking)} not; start the ranks by `srun`, "
            "or set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT"
        )
    # One port for all of a job, another for the next job of a shared node; below the ports that
    # systems give to outgoing connections.
    port = 12_000 + int(environment.get("SLURM_JOB_ID", "0")) % 20_000
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": _tasks_here(environment) or str(size),
        "MASTER_ADDR": environment.get("MASTER_ADDR") or expand_nodes(str(nodes))[0],
        "MASTER_PORT": environment.get("MASTER_PORT", str(port)),
    }


def _tasks_here(environment: Mapping[str, str]) -> str | None:
    """Ranks of this node. `2(x3),1`: two on each of three nodes, one on a fourth."""
    text = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE")
    if text and "SLURM_NODEID" in environment:
        counts: list[str] = []
        for part in text.split(","):
            found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
            if not found:
                raise UserError(f"SLURM_STEP_TASKS_PER_NODE {text}: not what SLURM writes")
            counts += [found[1]] * int(found[2] or 1)
        node = int(environment["SLURM_NODEID"])
        return counts[node] if node < len(counts) else None
    return environment.get("SLURM_NTASKS_PER_NODE")


def expand_nodes(text: str) -> list[str]:
    """Host names of SLURM's list: `gpu[01-03,7],login` and `r[1-2]n[1-8]` too.

    Raises:
        UserError: it is no such list.
    """
    if not re.fullmatch(rf"{NODES}(?:,{NODES})*", text):
        raise UserError(f"node list {text!r} is not what SLURM writes; set MASTER_ADDR")
    names: list[str] = []
    for part in re.findall(NODES, text):
        expanded = [""]
        for plain, ranges in re.findall(r"([^\[\]]+)|\[([^\[\]]*)\]", part):
            endings = [plain] if plain else _expand_ranges(ranges)
            expanded = [start + end for start in expanded for end in endings]
        names += expanded
    return names


def _expand_ranges(ranges: str) -> list[str]:
    """`01-03,7`: 01, 02, 03, 7."""
    endings: list[str] = []
    for piece in ranges.split(","):
        first, _, last = piece.partition("-")
        numbers = range(int(first), int(last or first) + 1)
        endings += [str(number).zfill(len(first)) for number in numbers]
    return endings


def _of_openmpi(environment: Mapping[str, str]) -> dict[str, str]:
    names = {
        "RANK": "OMPI_COMM_WORLD_RANK",
        "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
        "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
        "LOCAL_WORLD_SIZE": "OMPI_COMM_WORLD_LOCAL_SIZE",
    }
    missing = [theirs for theirs in names.values() if theirs not in environment]
    if missing:
        raise UserError(
            f"OMPI_COMM_WORLD_RANK is set but {', '.join(missing)} not; start the ranks by `mpirun`"
        )
    variables = {ours: environment[theirs] for ours, theirs in names.items()}
    if "MASTER_ADDR" in environment:
        variables["MASTER_ADDR"] = environment["MASTER_ADDR"]
    elif variables["LOCAL_WORLD_SIZE"] == variables["WORLD_SIZE"]:
        variables["MASTER_ADDR"] = "127.0.0.1"
    else:
        raise UserError(
            "mpirun started ranks on several nodes but MASTER_ADDR is not set; name the first "
            "node: mpirun -x MASTER_ADDR=HOST"
        )
    return variables | {"MASTER_PORT": environment.get("MASTER_PORT", str(DEFAULT_PORT))}


def _check(variables: Mapping[str, str]) -> None:
    numbers = {}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        if not variables[name].isdecimal():
            raise UserError(f"{name} is {variables[name]!r}, not a number")
        numbers[name] = int(variables[name])
    for small, large in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if numbers[small] >= numbers[large]:
            raise UserError(
                f"{small} is {numbers[small]} but {large} is {numbers[large]}; they come from "
                "different launchers: unset those that are not of this one"
            )
    if numbers["LOCAL_WORLD_SIZE"] > numbers["WORLD_SIZE"]:
        raise UserError(
            f"LOCAL_WORLD_SIZE is {numbers['LOCAL_WORLD_SIZE']} but WORLD_SIZE is "
            f"{numbers['WORLD_SIZE']}; unset the one that is not of this launcher"
        )


def interface_to(address: str) -> str | None:
    """The network interface through which this host reaches `address`; None: cannot tell."""
    import psutil

    try:
        family, _, _, _, place = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(place)  # sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address.split("%")[0] == own for entry in addresses):
            return name
    return None
