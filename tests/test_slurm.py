"""mllm/configs/slurm.sbatch, with stand-ins for srun and scontrol."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "mllm" / "configs" / "slurm.sbatch"
# Writes its arguments down; on USR1 it takes a moment, as saving does, and exits with 75.
SRUN = """#!/bin/bash
echo "$@" > "$OUT/srun"
trap 'echo USR1 >> "$OUT/signals"; sleep 0.5; exit 75' USR1
[ "$CODE" = wait ] || exit "$CODE"
touch "$OUT/ready"
for _ in {1..400}; do sleep 0.05; done
"""


def start(folder: Path, code: str) -> subprocess.Popen[bytes]:
    commands = folder / "bin"
    commands.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", '#!/bin/bash\necho "$@" >> "$OUT/scontrol"\n')):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    environment = {"PATH": f"{commands}:{os.environ['PATH']}", "SLURM_JOB_ID": "77"}
    environment |= {"OUT": str(folder), "CODE": code}
    return subprocess.Popen(["bash", str(SCRIPT), "c.yaml", "run_dir=a b"], env=environment)


@pytest.mark.parametrize("code", [0, 1, 2, 75, 137])
def test_the_job_is_queued_again_on_75_alone(tmp_path: Path, code: int) -> None:
    process = start(tmp_path, str(code))
    assert process.wait(timeout=20) == code
    requeued = tmp_path / "scontrol"
    assert requeued.exists() == (code == 75)
    if code == 75:
        assert requeued.read_text() == "requeue 77\n"
    assert (tmp_path / "srun").read_text().endswith("python mllm/train.py c.yaml run_dir=a b\n")


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_slurms_signal_reaches_the_ranks_once_and_the_save_is_waited_for(
    tmp_path: Path, number: int
) -> None:
    process = start(tmp_path, "wait")
    end = time.monotonic() + 20
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(number)
    time.sleep(0.2)
    process.send_signal(signal.SIGUSR1)  # a second one would have the ranks exit at once
    assert process.wait(timeout=20) == 75
    assert (tmp_path / "signals").read_text() == "USR1\n"
    assert (tmp_path / "scontrol").read_text() == "requeue 77\n"


def test_the_script_asks_slurm_for_what_it_relies_on() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    asked = [line for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    for option in ("--signal=B:USR1@300", "--requeue", "--open-mode=append"):
        assert f"#SBATCH {option}" in asked
