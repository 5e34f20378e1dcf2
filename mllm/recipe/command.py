"""`mllm recipe FILE`: runs stages and what lies between them in order, skipping finished ones."""

import difflib
import shlex
from pathlib import Path

from mllm.command import Parser
from mllm.errors import UserError
from mllm.recipe.journal import Journal
from mllm.recipe.runner import describe, judge, run_recipe
from mllm.recipe.steps import Recipe, read_recipe, resolve

EXAMPLES = """
examples:
  mllm recipe mllm/configs/recipe_demo.yaml
  mllm recipe mllm/configs/recipe_kosmos1.yaml --dry-run
  mllm recipe mllm/configs/recipe_kosmos1.yaml --from instruct

The file's keys are described at the top of mllm/recipe/steps.py. Ctrl-C and SIGTERM reach the stage
that runs: it saves, the recipe ends with 75, and the same command goes on.
"""


def main(argv: list[str]) -> int:
    parser = Parser(prog="mllm recipe", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("file", type=Path, metavar="FILE", help="a recipe; see mllm/configs/")
    parser.add_argument("--dry-run", action="store_true", help="print each command and run none")
    parser.add_argument(
        "--from",
        dest="first",
        metavar="STEP",
        help="begin at this step; what the ones before it make is taken as it is",
    )
    parser.add_argument(
        "--out", type=Path, help="instead of the file's `out`; paths in that folder move along"
    )
    parser.add_argument(
        "--redo",
        action="store_true",
        help="delete and make anew what was made from inputs that have changed",
    )
    args = parser.parse_args(argv)
    recipe = resolve(read_recipe(args.file), args.file, args.out)
    first = _number_of(args.first, recipe) if args.first else 0
    if args.dry_run:
        journal = Journal(recipe.out / "times.json")
        verdicts = judge(recipe.steps[first:], journal)
        for step in recipe.steps[first:]:
            print(f"[{step.name}] {describe(step, verdicts[step.name], journal)}")
            print(f"  {shlex.join(step.shown)}")
        return 0
    return run_recipe(recipe, first=first, redo=args.redo)


def _number_of(name: str, recipe: Recipe) -> int:
    names = [step.name for step in recipe.steps]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"its steps: {', '.join(names)}"
        raise UserError(f"--from {name}: no such step; {hint}")
    return names.index(name)
