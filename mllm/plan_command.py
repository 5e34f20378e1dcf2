"""`mllm plan`: what a run will need and how long it takes, before any accelerator is touched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mllm.command import Parser, print_json, stdout_is_json
from mllm.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

EXAMPLES = """
examples:
  mllm plan mllm/configs/demo_cpu.yaml --world-size 2 --device cpu
  mllm plan mllm/configs/kosmos1_1.6b.yaml --world-size 72 --device A100-80 --mfu 0.45
  mllm plan mllm/configs/kosmos1_1.6b.yaml --device H100 train.micro_batch_size=4 --json
"""


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="mllm plan",
        usage="mllm plan CONFIG [section.key=value ...] [--world-size W] [--device NAME] [--mfu M] "
        "[--images-per-row N] [--json]",
        description="Plans a run without an accelerator: memory of a rank by part, operations of a "
        "step, time, size of a checkpoint, and what to change where it does not fit.",
        epilog=EXAMPLES,
    )
    parser.add_argument("config", metavar="CONFIG", help="a training config; see mllm/configs/")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--world-size", type=int, default=1, metavar="W", help="ranks (default 1)")
    parser.add_argument(
        "--device",
        default="A100-80",
        metavar="NAME",
        help="V100, A100-40, A100-80, H100, H200, B200, L4, RTX4090 or cpu (default A100-80)",
    )
    parser.add_argument(
        "--mfu",
        type=float,
        default=0.4,
        metavar="M",
        help="share of the device's peak that training reaches (default 0.4: an assumption; "
        "metrics.jsonl and `make bench` say what yours reaches)",
    )
    parser.add_argument(
        "--images-per-row",
        type=int,
        metavar="N",
        help="pictures in a row of seq_len positions (default: as many as fit with 32 tokens of "
        "caption each, as in rows of image-text pairs); `mllm stream show --describe` counts yours",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse_intermixed_args(argv)
    for name, value in (("--world-size", args.world_size), ("--mfu", args.mfu)):
        if value <= 0:
            raise UserError(f"{name} {value}: must be above 0")
    if args.mfu > 1:
        raise UserError(f"--mfu {args.mfu}: is a share of the peak, at most 1")
    if args.images_per_row is not None and args.images_per_row < 0:
        raise UserError(f"--images-per-row {args.images_per_row}: use 0 or more")

    with stdout_is_json():
        from mllm.config import load_config
        from mllm.plan import advise, plan

        config = load_config(args.config, args.overrides)
        question = {
            "world_size": args.world_size,
            "device": args.device,
            "mfu": args.mfu,
            "images_per_row": args.images_per_row,
        }
        result = plan(config, **question)
        result["advice"] = None if result["fits"] else advise(config, **question)
    if args.json:
        print_json({"config": args.config, **result})
    else:
        _show(args.config, result)
    return 0


def _show(name: str, plan: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.print(
        f"{name}: stage {plan['stage']}, {plan['world_size']} x {plan['device']}, "
        f"{plan['precision']}, ZeRO-{plan['zero_stage']}, micro-batch {plan['micro_batch_size']} x "
        f"{plan['step']['grad_accum_steps']} micro-steps"
    )
    console.print(_memory_table(plan))
    console.print(_step_table(plan))
    step, checkpoint = plan["step"], plan["checkpoint"]
    console.print(
        f"a step: {step['rows']:,} rows, {step['tokens']:,} positions, {step['images']:,} pictures "
        f"({plan['assumed']})"
    )
    console.print(
        f"time: {plan['time']['seconds_per_step']:.3g} s a step, "
        f"{_duration(plan['time']['seconds'])} for {step['num_steps']:,} steps, at an MFU of "
        f"{plan['time']['mfu']:.0%}"
    )
    console.print(
        f"disk: {_size(checkpoint['bytes'])} a checkpoint, {_size(checkpoint['run_bytes'])} at "
        f"most for the {checkpoint['kept']} that are kept and one being written; rank 0 writes "
        f"from a copy of {_size(checkpoint['copied'])} in host memory"
    )
    memory = plan["memory"]
    room = f"{_size(memory['peak'])} of {_size(plan['device_bytes'])} on each rank"
    console.print(f"fits: {room}" if plan["fits"] else f"does NOT fit: {room}")
    if plan["advice"] is not None:
        console.print(plan["advice"], soft_wrap=True)
    console.print("(memory: compared with real runs on a CPU in fp32 only)")


def _memory_table(plan: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table("memory of a rank", "bytes", "")
    for part, size in plan["memory"].items():
        if part not in ("peak", "host"):
            table.add_row(part.replace("_", " "), f"{size:,}", _size(size))
    table.add_section()
    table.add_row("peak", f"{plan['memory']['peak']:,}", _size(plan["memory"]["peak"]))
    if plan["memory"]["host"]:
        table.add_row(
            "offloaded to the host", f"{plan['memory']['host']:,}", _size(plan["memory"]["host"])
        )
    return table


def _step_table(plan: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table("part", "parameters", "trainable", "FLOPs a step")
    flops = plan["flops_per_step"]
    for part in dict.fromkeys([*plan["parameters"], *flops]):
        if part != "total":
            number, trainable = plan["parameters"].get(part, (0, 0))
            table.add_row(part, f"{number:,}", f"{trainable:,}", f"{flops.get(part, 0):.3e}")
    table.add_section()
    sums = [sum(column) for column in zip(*plan["parameters"].values(), strict=True)]
    table.add_row("total", *(f"{n:,}" for n in sums), f"{flops['total']:.3e}")
    return table


def _size(number: int) -> str:
    return f"{number / 2**30:.2f} GiB" if number >= 2**28 else f"{number / 2**20:.1f} MiB"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} seconds"
