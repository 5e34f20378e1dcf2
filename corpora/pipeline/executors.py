"""datatrove's executors, each made with the same few options: local processes, SLURM, Ray."""

import os
import re
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import datatrove.utils.logging
import multiprocess
from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from mllm.errors import UserError

# SlurmPipelineExecutor's own arguments; anything else goes to sbatch as it stands.
SLURM_ARGUMENTS = {
    "partition": str,
    "time": str,
    "qos": str,
    "cpus_per_task": int,
    "mem_per_cpu_gb": int,
    "max_array_size": int,
    "tasks_per_job": int,
    "condaenv": str,
    "venv_path": str,
}
# datatrove puts paths unquoted into the script that it hands to sbatch.
SHELL_SAFE = re.compile(r"[\w@%+=:,./-]+")


@dataclass(frozen=True)
class ExecutorOptions:
    """Where tasks run. Nothing here changes what an import writes."""

    kind: Literal["local", "slurm", "ray"] = "local"
    tasks: int = 1
    workers: int = 1  # tasks at a time
    slurm: dict[str, str] = field(default_factory=dict)
    ray_address: str | None = None

    def __post_init__(self) -> None:
        if self.tasks < 1 or self.workers < 1:
            raise UserError("--tasks and --workers: give 1 or more")
        if self.kind == "slurm":
            missing = [name for name in ("partition", "time") if name not in self.slurm]
            if missing:
                raise UserError(f"--executor slurm: give --slurm {','.join(missing)}=...")
        elif self.slurm:
            raise UserError("--slurm is for --executor slurm")


def make_executor(
    options: ExecutorOptions,
    name: str,
    steps: list[PipelineStep],
    num_ranks: int,
    logs_dir: Path,
    after: PipelineExecutor | None = None,
) -> PipelineExecutor:
    """An executor of `steps` over at most `num_ranks` tasks.

    Args:
        name: of the stage, for SLURM's job and the folder of logs.
        after: SLURM only: the stage that must have ended well before.
    """
    tasks = min(options.tasks, num_ranks)
    # datatrove notes finished tasks by number there: another number of tasks, another folder.
    logging_dir = str(logs_dir / f"{name}-{tasks}-tasks")
    workers = min(options.workers, tasks)
    if options.kind == "local":
        return QuietLocal(steps, tasks=tasks, workers=workers, logging_dir=logging_dir)
    if options.kind == "ray":
        return QuietRay(steps, tasks=tasks, workers=workers, logging_dir=logging_dir)
    if not SHELL_SAFE.fullmatch(logging_dir):
        raise UserError(f"{logs_dir}: SLURM's script cannot carry this path; use plain letters")
    known, others = _slurm_arguments(options.slurm)
    executable = Path(sys.executable).parent / "activate"
    if executable.exists() and not {"venv_path", "condaenv"} & set(known):
        known["venv_path"] = str(executable)
    return SlurmPipelineExecutor(
        steps,
        tasks=tasks,
        workers=workers,
        logging_dir=logging_dir,
        job_name=f"mllm-{name}",
        sbatch_args=others,
        depends=after,  # type: ignore[arg-type]
        **known,
    )


class QuietLocal(LocalPipelineExecutor):
    """Logs to files only."""

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        keep_stderr_clean()
        if multiprocess.parent_process() is not None:
            # Ctrl-C reaches every process of a terminal; the command's own process ends the others.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        return super()._run_for_rank(rank, local_rank, node_rank)


class QuietRay(RayPipelineExecutor):
    """Logs to files only."""

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        keep_stderr_clean()
        return super()._run_for_rank(rank, local_rank, node_rank)


def keep_stderr_clean() -> None:
    """datatrove adds `sys.stderr` to loguru's sinks at each task; here that is the null device.

    Its logs go to files; our stderr is for progress and one-line errors.
    """
    logging = datatrove.utils.logging
    if isinstance(logging.sys, SimpleNamespace):
        return
    null = open(os.devnull, "w")  # noqa: SIM115  (open as long as the process)
    logging.sys = SimpleNamespace(stderr=null)  # type: ignore[assignment]
    logging.logger.remove()


def _slurm_arguments(given: dict[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    known: dict[str, Any] = {}
    others = {}
    for name, value in given.items():
        if name not in SLURM_ARGUMENTS:
            others[name] = value
            continue
        try:
            known[name] = SLURM_ARGUMENTS[name](value)
        except ValueError:
            raise UserError(f"--slurm {name}={value}: give a whole number") from None
        if isinstance(known[name], str) and not SHELL_SAFE.fullmatch(value):
            raise UserError(f"--slurm {name}={value}: only plain letters can stand in the script")
    return known, others
