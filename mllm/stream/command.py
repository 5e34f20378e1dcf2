"""`mllm stream show`: the rows that training will see, by the code that training runs."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm.command import Parser, print_json, stdout_is_json
from mllm.errors import UserError

if TYPE_CHECKING:
    from mllm.config import Config

EXAMPLES = """
examples:
  mllm stream show mllm/configs/demo_cpu.yaml --steps 0:2
  mllm stream show mllm/configs/demo_cpu.yaml --steps 10000000:10000001 --world-size 2
  mllm stream show runs/demo/pretrain --steps 100:102
  mllm stream show mllm/configs/demo_cpu.yaml --describe train.global_batch_size=16
"""


def main(argv: list[str]) -> int:
    parser = Parser(prog="mllm stream", description=__doc__, epilog=EXAMPLES)
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=Parser)
    show = verbs.add_parser(
        "show",
        usage="mllm stream show CONFIG|RUN_DIR (--steps A:B | --describe) [--world-size W] "
        "[section.key=value ...]",
        description="Prints one JSON object per row, in global order. Of a run's folder: what its "
        "steps have read, by its own stream.json, whatever the mixture is now.",
        epilog=EXAMPLES,
    )
    show.add_argument("config", metavar="CONFIG", help="a training config, or a run's folder")
    what = show.add_mutually_exclusive_group(required=True)
    what.add_argument("--steps", metavar="A:B", help="steps A up to, not including, B")
    what.add_argument(
        "--describe", action="store_true", help="one object: rows, padding, cuts, shares by source"
    )
    show.add_argument("--world-size", type=int, default=1, metavar="W", help="ranks (default 1)")
    # Overrides may stand anywhere, which argparse cannot say of positionals in a subcommand.
    arguments, overrides = parser.parse_known_args(argv)
    for override in overrides:
        if override.startswith("-") or "=" not in override:
            show.error(f"unrecognized argument {override}")

    with stdout_is_json():
        from mllm.config import load_config
        from mllm.stream.describe import describe

        path = Path(arguments.config)
        config = load_config(path / "config.yaml" if path.is_dir() else path, overrides)
        if config.stage == "vision" and arguments.describe:
            raise UserError(
                f"{arguments.config}: stage vision reads pairs, it packs no rows to describe"
            )
        steps = parse_steps(arguments.steps) if arguments.steps else range(0)
        if arguments.world_size < 1:
            raise UserError(f"--world-size {arguments.world_size}: give 1 or more")
        stream = stream_of_run(path, config) if path.is_dir() else build_stream(config)
        stream.grad_accum_steps(arguments.world_size, config.train.micro_batch_size)
    if arguments.describe:
        print_json(
            describe(
                stream,
                world_size=arguments.world_size,
                micro_batch_size=config.train.micro_batch_size,
            )
        )
    for step in steps:
        for info in stream.row_infos(
            step,
            world_size=arguments.world_size,
            micro_batch_size=config.train.micro_batch_size,
        ):
            print_json(dataclasses.asdict(info))
    return 0


def build_stream(config: Config) -> Any:
    """The stream of the config's stage: a TokenStream or, of stage vision, a PairStream."""
    from mllm.stream.pairs import PairStream
    from mllm.stream.stream import TokenStream

    return PairStream(config) if config.stage == "vision" else TokenStream.from_config(config)


def stream_of_run(run_dir: Path, config: Config) -> Any:
    """The stream of all segments of a run, with every source that any of them has."""
    from mllm.run_folder import read_stream_state, with_all_sources

    state = read_stream_state(run_dir)
    stream = build_stream(with_all_sources(config, state))
    stream.recall(state)
    return stream


def parse_steps(text: str) -> range:
    """`A:B` as a range; one number is that step alone."""
    match = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    if not match:
        raise UserError(f"--steps {text}: give A:B, two step numbers, such as 0:2")
    first = int(match[1])
    stop = int(match[2]) if match[2] else first + 1
    if stop <= first:
        raise UserError(f"--steps {text}: holds no step; the second number must be the larger")
    return range(first, stop)
