"""`make bench`: runs every row of this folder, or those named, and writes runs/bench/NAME.json.

python -m mllm.bench            all rows
python -m mllm.bench index seek those
"""

import importlib
import pkgutil
import sys
from pathlib import Path

import mllm.bench
from mllm.files import write_json

OUT = Path("runs/bench")


def main(names: list[str]) -> int:
    rows = sorted(m.name for m in pkgutil.iter_modules(mllm.bench.__path__) if m.name[0] != "_")
    rows = [row for row in rows if row != "machine"]
    unknown = [name for name in names if name not in rows]
    if unknown:
        print(f"no such row: {', '.join(unknown)}; rows: {', '.join(rows)}", file=sys.stderr)
        return 2
    for name in names or rows:
        module = importlib.import_module(f"mllm.bench.{name}")
        print(f"== {name}: {(module.__doc__ or '').splitlines()[0]}", flush=True)
        result = module.run()
        for line in module.lines(result):
            print(f"   {line}", flush=True)
        write_json(OUT / f"{name}.json", result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
