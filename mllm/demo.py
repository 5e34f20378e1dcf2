"""`mllm demo`: the whole chain on real data, from public packages to a model that sees.

Every step is a command that a user could type; it is printed before it runs. A finished step is
not run again; an interrupted one goes on from where it stood.
"""

import json
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllm.command import Parser
from mllm.dist import free_port
from mllm.errors import UserError
from mllm.files import fingerprint, write_aside, write_json

DEMO_DIR = Path("runs/demo")  # as the configs have it
CONFIGS = Path(__file__).resolve().parent / "configs"


@dataclass(frozen=True)
class Step:
    name: str
    argv: list[str]
    folder: Path  # everything the step writes
    output: str  # in the folder; a finished step without it runs again
    is_silent: bool = False  # what it prints is printed again at the end

    @property
    def fingerprint(self) -> str:
        """16 hex over the command and the configs it reads."""
        configs = [Path(word).read_text() for word in self.argv if word.endswith(".yaml")]
        return fingerprint([self.argv, configs])


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
    out = args.out or (Path("runs/smoke") if args.smoke else DEMO_DIR)
    if args.exclude and not args.exclude.is_file():
        raise UserError(f"--exclude {args.exclude}: no such file; it lists one name a line")
    out.mkdir(parents=True, exist_ok=True)
    times = Times(out / "times.json")
    if "probe" not in times.entries:
        times.entries["probe"] = probe()
    print(describe_probe(times.entries["probe"]), flush=True)
    is_stale = False  # a step that ran anew makes every later result one of something else
    for step in steps(out, is_small=args.smoke, exclude=args.exclude):
        if times.is_done(step) and not is_stale:
            seconds = times.entries[step.name]["seconds"]
            print(f"[{step.name}] done before, {seconds:.0f} s", flush=True)
            continue
        if is_stale:  # what lies there came from other inputs
            shutil.rmtree(step.folder, ignore_errors=True)
        is_stale = True
        if code := run(step, times):
            return code
    summarise(out, times)
    return 0


def steps(out: Path, *, is_small: bool, exclude: Path | None) -> list[Step]:
    """The chain, each step with the command that runs it."""
    mllm = [sys.executable, "-m", "mllm.cli"]
    launcher = [str(Path(sys.executable).with_name("deepspeed")), "--num_accelerators", "2"]
    train = [*launcher, str(CONFIGS.parent / "train.py")]
    corpus, tokenizer, export = out / "corpus", out / "tokenizer", out / "export"
    kinds = ("text", "interleaved", "pairs", "flags", "shapes", "vqa")
    trained_on = [str(corpus / kind / "train") for kind in kinds]
    return [
        Step(
            "corpus",
            [
                *[*mllm, "corpora", "demo", "--out", str(corpus)],
                *(["--small"] if is_small else []),
                *(["--exclude", str(exclude)] if exclude else []),
            ],
            corpus,
            "report.json",
        ),
        Step(
            "tokenizer",
            [
                *[*mllm, "tokenizer", "train", *trained_on, "--out", str(tokenizer)],
                *(["--vocab-size", "1024"] if is_small else []),
            ],
            tokenizer,
            "tokenizer.model",
        ),
        Step(
            "vision stage",
            [
                *[*train, str(config_for("demo_vision.yaml", out))],
                *(SMALL_MODEL + SMALL_VISION if is_small else ()),
            ],
            out / "vision",
            "checkpoints/latest",
        ),
        Step(
            "multimodal stage",
            [
                *[*train, str(config_for("demo_cpu.yaml", out))],
                *(SMALL_MODEL + SMALL_PRETRAIN if is_small else ()),
            ],
            out / "pretrain",
            "checkpoints/latest",
        ),
        Step(
            "export",
            [*mllm, "export", str(out / "pretrain"), "--out", str(export)],
            export,
            "config.json",
        ),
        Step(
            "evaluation",
            [
                *[*mllm, "eval", "demo", "--model", str(export), "--data", str(corpus)],
                *["--out", str(out / "eval")],
                *(["--limit", "24", "--seeds", "0"] if is_small else []),
            ],
            out / "eval",
            "results.json",
            is_silent=True,
        ),
    ]


SMALL_MODEL = (
    "model.vocab_size=1024",
    "model.model_dim=64",
    "model.num_layers=2",
    "model.num_heads=2",
    "model.ffn_dim=128",
    "model.vision.width=64",
    "model.vision.num_layers=2",
    "model.vision.num_heads=2",
    "model.vision.mlp_dim=128",
)
SMALL_VISION = (
    "contrastive.embed_dim=64",
    "train.num_steps=12",
    "train.micro_batch_size=16",
    "train.global_batch_size=32",
    "train.warmup_steps=2",
)
SMALL_PRETRAIN = ("train.num_steps=20", "train.warmup_steps=5", "train.validation_rows=4")


def config_for(name: str, out: Path) -> Path:
    """The demo's config, or a copy of it whose paths lie in another folder."""
    if out == DEMO_DIR:
        return CONFIGS / name
    text = (CONFIGS / name).read_text(encoding="utf-8").replace(str(DEMO_DIR), str(out))
    with write_aside(out / name) as file:
        file.write(text)
    return out / name


class Times:
    """`times.json`: what each finished step was and how long it took, over all attempts."""

    def __init__(self, path: Path):
        self.path = path
        self.entries: dict[str, Any] = {}
        if path.exists():
            self.entries = json.loads(path.read_text())

    def add(self, step: Step, seconds: float, *, is_done: bool) -> None:
        before = self.entries.get(step.name, {})
        if before.get("command") != step.fingerprint:
            before = {}
        self.entries[step.name] = {
            "command": step.fingerprint,
            "seconds": round(before.get("seconds", 0.0) + seconds, 1),
            "is_done": is_done,
        }
        write_json(self.path, self.entries)

    def is_done(self, step: Step) -> bool:
        entry = self.entries.get(step.name, {})
        return (
            entry.get("is_done", False)
            and entry.get("command") == step.fingerprint
            and (step.folder / step.output).exists()
        )


def run(step: Step, times: Times) -> int:
    """Runs a step's command. Returns its exit code."""
    print(f"\n[{step.name}] {shlex.join(step.argv)}", flush=True)
    began = time.monotonic()
    code = 1
    try:
        stdout = subprocess.DEVNULL if step.is_silent else None
        code = subprocess.run(with_free_port(step.argv), stdout=stdout, check=False).returncode
    finally:
        times.add(step, time.monotonic() - began, is_done=code == 0)
    print(f"[{step.name}] {time.monotonic() - began:.0f} s", flush=True)
    if code:
        print(f"mllm: {step.name} ended with {code}; the same command goes on", file=sys.stderr)
    return code


def with_free_port(argv: list[str]) -> list[str]:
    """The launcher's default port may be another run's."""
    if Path(argv[0]).name != "deepspeed":
        return argv
    return [argv[0], "--master_port", str(free_port()), *argv[1:]]


def probe() -> dict[str, float]:
    """GFLOP/s of a 2048-cubed matrix product in bf16 and fp32, median of five.

    Of a 256-cubed one in bf16 where that is emulated: at 1 GFLOP/s the large one takes minutes.
    """
    import torch

    from mllm.engine import resolve_precision

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


def summarise(out: Path, times: Times) -> None:
    """The report, then the last lines on the terminal: times, scores, verdict, where to go on."""
    from evals.table import print_scores
    from mllm.report import main as report

    seconds = [
        {"step": name, "seconds": entry["seconds"]}
        for name, entry in times.entries.items()
        if name != "probe"
    ]
    probe_rates = {f"probe_{name}": rate for name, rate in times.entries["probe"].items()}
    write_json(out / "report_times.json", [*seconds, probe_rates])
    page = out / "report.html"
    report(
        [
            *[str(out / "vision"), str(out / "pretrain"), "--eval", str(out / "eval")],
            *["--corpus", str(out / "corpus"), "--export", str(out / "export")],
            *["--times", str(out / "report_times.json"), "--out", str(page)],
        ]
    )
    print(f"\n{describe_probe(times.entries['probe'])}")
    for entry in seconds:
        print(f"  {entry['step']:18} {entry['seconds']:7.0f} s")
    print(f"  {'all':18} {sum(entry['seconds'] for entry in seconds):7.0f} s")
    print_scores(json.loads((out / "eval" / "results.json").read_text())["cells"])
    print(f"report: {page}")
    print(f"chat:   make chat MODEL={out / 'export'}")
