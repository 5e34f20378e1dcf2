"""`mllm stop RUN`: asks a running job to save and stop; it exits with 75 after its current step."""

from pathlib import Path

from mllm.command import Parser
from mllm.errors import UserError

STOP_FILE = "stop"  # in the run folder; the loop looks for it at each step boundary


def main(argv: list[str]) -> int:
    parser = Parser(prog="mllm stop", description=__doc__, epilog="mllm stop runs/demo/pretrain")
    parser.add_argument("run", type=Path, help="the run's folder")
    args = parser.parse_args(argv)
    if not (args.run / "config.yaml").is_file():
        raise UserError(f"{args.run} is no run folder (it has no config.yaml)")
    (args.run / STOP_FILE).touch()
    print(f"{args.run} will save and stop after its current step")
    return 0
