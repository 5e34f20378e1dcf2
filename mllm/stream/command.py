"""`mllm stream show`: the rows that training will see, by the code that training runs."""

import dataclasses
import re

from mllm.command import Parser, print_json, stdout_is_json
from mllm.errors import UserError

EXAMPLES = """
examples:
  mllm stream show mllm/configs/demo_cpu.yaml --steps 0:2
  mllm stream show mllm/configs/demo_cpu.yaml --steps 10000000:10000001 --world-size 2
  mllm stream show mllm/configs/demo_cpu.yaml --describe train.global_batch_size=16
"""


def main(argv: list[str]) -> int:
    parser = Parser(prog="mllm stream", description=__doc__, epilog=EXAMPLES)
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=Parser)
    show = verbs.add_parser(
        "show",
        usage="mllm stream show CONFIG (--steps A:B | --describe) [--world-size W] "
        "[section.key=value ...]",
        description="Prints one JSON object per row, in global order.",
        epilog=EXAMPLES,
    )
    show.add_argument("config", metavar="CONFIG", help="a training config")
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
        from mllm.stream.stream import TokenStream

        config = load_config(arguments.config, overrides)
        if config.stage == "vision":
            raise UserError(
                f"{arguments.config}: stage vision reads pairs, it packs no rows to show"
            )
        steps = parse_steps(arguments.steps) if arguments.steps else range(0)
        if arguments.world_size < 1:
            raise UserError(f"--world-size {arguments.world_size}: give 1 or more")
        stream = TokenStream.from_config(config)
        stream.grad_accum_steps(arguments.world_size, config.train.micro_batch_size)
    if arguments.describe:
        print_json(stream.describe())
    for step in steps:
        for info in stream.row_infos(
            step,
            world_size=arguments.world_size,
            micro_batch_size=config.train.micro_batch_size,
        ):
            print_json(dataclasses.asdict(info))
    return 0


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
