"""`mllm demo`: the whole chain on real data, from public packages to a model that sees.

The steps are those of mllm/configs/recipe_demo.yaml: a finished one is not run again, one that was
interrupted goes on. Around them stand the machine's speed, the report and the scores.
"""

import json
import time
from dataclasses import replace
from pathlib import Path

from mllm.command import Parser
from mllm.errors import UserError
from mllm.files import write_json
from mllm.recipe.journal import Journal
from mllm.recipe.runner import run_recipe
from mllm.recipe.steps import RecipeConfig, read_recipe, resolve

CONFIGS = Path(__file__).resolve().parent / "configs"


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="mllm demo",
        description=__doc__,
        epilog="mllm demo\nmllm demo --smoke      the same chain in a few minutes, on a fraction",
    )
    parser.add_argument("--out", type=Path, help="default runs/demo, or runs/smoke with --smoke")
    parser.add_argument("--exclude", type=Path, help="concept names to leave out of training")
    parser.add_argument("--smoke", action="store_true", help="small corpus, few steps")
    args = parser.parse_args(argv)
    if args.exclude and not args.exclude.is_file():
        raise UserError(f"--exclude {args.exclude}: no such file; it lists one name a line")
    path = CONFIGS / ("recipe_smoke.yaml" if args.smoke else "recipe_demo.yaml")
    recipe = resolve(with_excluded(read_recipe(path), args.exclude), path, args.out)
    recipe.out.mkdir(parents=True, exist_ok=True)
    journal = Journal(recipe.out / "times.json")
    if "probe" not in journal.entries:
        journal.note("probe", probe())
    print(describe_probe(journal.entries["probe"]), flush=True)
    # What a step that runs anew leaves stale took minutes, and is the demo's own.
    if code := run_recipe(recipe, redo=True):
        return code
    summarise(recipe.out, Journal(journal.path))
    return 0


def with_excluded(recipe: RecipeConfig, names: Path | None) -> RecipeConfig:
    """The recipe with concepts left out of its first step, the corpus."""
    if names is None:
        return recipe
    corpus, *others = recipe.steps
    corpus = replace(corpus, mllm=[*corpus.mllm, "--exclude", str(names)])
    return replace(recipe, steps=[corpus, *others])


def probe() -> dict[str, float]:
    """GFLOP/s of a 2048-cubed matrix product in bf16 and fp32, median of five.

    Of a 256-cubed one in bf16 where that is emulated: at 1 GFLOP/s the large one takes minutes.
    """
    import torch

    from mllm.engine_config import resolve_precision

    rates = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        side = 256 if name == "bf16" and resolve_precision("auto") == "fp32" else 2048
        a = torch.randn(side, side).to(dtype)
        b = torch.randn(side, side).to(dtype)
        a @ b
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            a @ b
            seconds.append(time.perf_counter() - began)
        rates[f"{name}_gflops"] = round(2 * side**3 / sorted(seconds)[2] / 1e9, 1)
    return rates


def describe_probe(rates: dict[str, float]) -> str:
    return (
        f"matrix product: {rates['bf16_gflops']:.0f} GFLOP/s in bf16, "
        f"{rates['fp32_gflops']:.0f} in fp32"
    )


def summarise(out: Path, journal: Journal) -> None:
    """The report, then the last lines on the terminal: times, scores, verdict, where to go on."""
    from evals.table import print_scores
    from mllm.report import main as report

    seconds = [
        {"step": name, "seconds": entry["seconds"]}
        for name, entry in journal.entries.items()
        if name != "probe"
    ]
    probe_rates = {f"probe_{name}": rate for name, rate in journal.entries["probe"].items()}
    write_json(out / "report_times.json", [*seconds, probe_rates])
    page = out / "report.html"
    report(
        [
            *[str(out / "vision"), str(out / "pretrain"), "--eval", str(out / "eval")],
            *["--corpus", str(out / "corpus"), "--export", str(out / "export")],
            *["--times", str(out / "report_times.json"), "--out", str(page)],
        ]
    )
    print(f"\n{describe_probe(journal.entries['probe'])}")
    for entry in seconds:
        print(f"  {entry['step']:18} {entry['seconds']:7.0f} s")
    print(f"  {'all':18} {sum(entry['seconds'] for entry in seconds):7.0f} s")
    print_scores(json.loads((out / "eval" / "results.json").read_text())["cells"])
    print(f"report: {page}")
    print(f"chat:   make chat MODEL={out / 'export'}")
