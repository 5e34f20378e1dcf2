"""Share of a training step spent waiting for data: the demo's model, with 0, 1 and 2 workers.

On the demo's corpus where it is built (`make demo`), else on one made on the spot. The first two
steps of each run, in which processes start and memory is found, are left out.
"""

import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from corpora.document import Document, ImageSegment, TextSegment
from corpora.shards import ShardWriter
from mllm import dist
from mllm.bench import machine
from mllm.bench._twins import DEMO_CONFIG
from mllm.config import load_config
from mllm.engine import init_distributed
from mllm.train import train
from tokenizer.train import train_tokenizer

NUM_STEPS = 12
LEFT_OUT = 2  # steps
WORKERS = (0, 1, 2)


def run() -> dict[str, Any]:
    result: dict[str, Any] = {
        **machine.describe("torch", "deepspeed"),
        "corpus": "demo" if has_demo_corpus() else "made on the spot",
        "steps": NUM_STEPS - LEFT_OUT,
        "workers": {},
    }
    dist.set_up_environment()
    init_distributed()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        overrides = ["init_from=null", "data.validation=[]", f"train.num_steps={NUM_STEPS}"]
        if not has_demo_corpus():
            overrides += make_corpus(root)
        for num_workers in WORKERS:
            run_dir = root / f"workers-{num_workers}"
            changes = [f"run_dir={run_dir}", f"data.num_workers={num_workers}", *overrides]
            train(load_config(DEMO_CONFIG, changes))
            result["workers"][num_workers] = _waits(run_dir)
    return result


def _waits(run_dir: Path) -> dict[str, float]:
    steps = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [step for step in steps if "step_seconds" in step][LEFT_OUT:]
    waits = np.array([step["data_wait_seconds"] for step in steps])
    works = np.array([step["step_seconds"] for step in steps])
    return {
        "wait_share": float(waits.sum() / (waits + works).sum()),
        "median_wait_ms": float(np.median(waits) * 1e3),
        "median_step_ms": float(np.median(works) * 1e3),
    }


def lines(result: dict[str, Any]) -> list[str]:
    return [f"corpus: {result['corpus']}"] + [
        f"{number} workers: waits {100 * found['wait_share']:.2f} % of the time "
        f"({found['median_wait_ms']:.1f} ms a step of {found['median_step_ms']:.0f} ms)"
        for number, found in result["workers"].items()
    ]


def has_demo_corpus() -> bool:
    config = load_config(DEMO_CONFIG)
    is_built = all(Path(source.path, "index").is_dir() for source in config.data.mixture)
    return is_built and Path(config.tokenizer).is_dir()


def make_corpus(root: Path) -> list[str]:
    """Pairs and texts, and the overrides that put them in the demo's place."""
    draws = np.random.default_rng(0)
    with ShardWriter(root / "pairs") as pairs, ShardWriter(root / "text") as texts:
        for number in range(600):
            coarse = draws.integers(0, 256, (5, 5, 3)).astype(np.uint8)
            file = io.BytesIO()
            Image.fromarray(coarse).resize((128, 128)).save(file, "JPEG", quality=90)
            words = " ".join(draws.choice(machine.WORDS, 12))
            segments = (ImageSegment(file.getvalue()), TextSegment(words))
            pairs.write(Document(f"p{number}", segments))
            words = " ".join(draws.choice(machine.WORDS, int(draws.integers(20, 300))))
            texts.write(Document(f"t{number}", (TextSegment(words),)))
    train_tokenizer([root / "pairs", root / "text"], root / "tokenizer", 300, 200_000)
    mixture = [
        {"name": "pairs", "path": str(root / "pairs"), "weight": 0.7, "join_documents": 0.5},
        {"name": "text", "path": str(root / "text"), "weight": 0.3, "join_documents": 0.3},
    ]
    return [
        f"data.mixture={json.dumps(mixture)}",
        f"tokenizer={root / 'tokenizer'}",
        "model.vocab_size=300",
    ]
