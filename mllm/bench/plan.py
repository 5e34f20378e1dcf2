"""`mllm plan`'s peak of resident memory beside that of real trainings, ZeRO 0 to 3, on the CPU.

Each training is a process forked after the imports, so what is measured is what lies above them:
three sizes on which the plan's constants were fitted, and three others. One rank, fp32, 3 steps of
2 micro-steps with a checkpoint at the end.
"""

import io
import json
import os
import random
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from mllm.bench.machine import WORDS, describe

# (model_dim, num_layers, ffn_dim, seq_len, micro_batch_size, vision width)
FITTED = {
    "narrow": (192, 4, 768, 256, 2, 128),
    "wide": (448, 2, 1792, 128, 2, 128),
    "long": (128, 3, 512, 512, 4, 128),
}
HELD_OUT = {
    "middle": (320, 3, 1280, 192, 2, 128),
    "deep": (160, 8, 640, 256, 3, 128),
    "seeing": (256, 2, 1024, 320, 3, 256),
}
STAGES = (0, 1, 2, 3)
VOCAB_SIZE = 512
TARGET = 0.15


def run() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mllm.bench.plan", folder]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {"machine": describe("torch", "deepspeed"), "rows": rows}


def lines(result: dict[str, Any]) -> list[str]:
    said = [
        f"{row['size']:8} ZeRO-{row['stage']} {'fitted' if row['is_fitted'] else 'held out'}: "
        f"planned {row['planned_bytes'] / 2**20:.0f} MiB, measured "
        f"{row['measured_bytes'] / 2**20:.0f} "
        f"({row['planned_bytes'] / row['measured_bytes'] - 1:+.0%})"
        for row in result["rows"]
    ]
    worst = worst_error(result["rows"])
    return [*said, f"held out: at most {worst:.0%} off (target {TARGET:.0%})"]


def worst_error(rows: list[dict[str, Any]]) -> float:
    """The largest relative error of the plan over the sizes that were not fitted."""
    held_out = [row for row in rows if not row["is_fitted"]]
    return max(abs(row["planned_bytes"] / row["measured_bytes"] - 1) for row in held_out)


def build_world(folder: Path) -> None:
    """Corpora of 60 pictures with captions and of 200 texts, and a tokenizer."""
    import numpy as np
    from PIL import Image

    from corpora.document import Document, ImageSegment, TextSegment
    from corpora.shards import ShardWriter
    from tokenizer.train import train_tokenizer

    draws = random.Random(0)
    with ShardWriter(folder / "pairs", samples_per_shard=60) as writer:
        for i in range(60):
            pixels = np.random.default_rng(i).integers(0, 255, (32, 32, 3), dtype=np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            caption = " ".join(draws.choices(WORDS, k=8))
            segments = (ImageSegment(file.getvalue()), TextSegment(caption))
            writer.write(Document(f"pair{i:03d}", segments))
    with ShardWriter(folder / "text", samples_per_shard=200) as writer:
        for i in range(200):
            words = ["".join(draws.choices("abcdefghijklmnop", k=5)) for _ in range(150)]
            writer.write(Document(f"text{i:03d}", (TextSegment(" ".join(words)),)))
    train_tokenizer([folder / "pairs", folder / "text"], folder / "tokenizer", VOCAB_SIZE, 100_000)


def config_of(folder: Path, size: str, stage: int) -> Any:
    """The training of one size under one ZeRO stage, in a run folder of its own."""
    from mllm.config import parse_config

    dim, layers, ffn_dim, seq_len, rows, width = (FITTED | HELD_OUT)[size]
    sources = [("pairs", 0.5), ("text", 0.5)]
    values = {
        "run_dir": str(folder / f"{size}-{stage}"),
        "tokenizer": str(folder / "tokenizer"),
        "data": {
            "mixture": [
                {"name": name, "path": str(folder / name), "weight": weight}
                for name, weight in sources
            ],
            "num_workers": 0,
        },
        "model": {
            "vocab_size": VOCAB_SIZE,
            "seq_len": seq_len,
            "model_dim": dim,
            "num_layers": layers,
            "num_heads": dim // 32,
            "ffn_dim": ffn_dim,
            "num_latents": 8,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "vision": {
                "image_size": 64,
                "patch_size": 16,
                "width": width,
                "num_layers": 3,
                "num_heads": width // 32,
                "mlp_dim": 4 * width,
            },
        },
        "train": {
            "num_steps": 3,
            "micro_batch_size": rows,
            "global_batch_size": 2 * rows,
            "precision": "fp32",
            "checkpoint_every": 3,
        },
        "zero": {"stage": stage},
    }
    return parse_config(values, "the benchmark's config")


def status_bytes(name: str) -> int:
    """A size from /proc/self/status, such as VmRSS or VmHWM (the most that VmRSS has been)."""
    text = Path("/proc/self/status").read_text()
    line = next(line for line in text.splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


def measured_bytes(config: Any) -> int:
    """The most that a training holds above what the imports do, in a forked process."""
    import deepspeed  # noqa: F401

    from mllm import dist
    from mllm.engine import init_distributed
    from mllm.train import train

    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(2, 1)
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
            before = status_bytes("VmRSS")
            dist.set_up_environment()
            init_distributed()
            train(config)
            os.write(sink, str(status_bytes("VmHWM") - before).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    os.close(sink)
    text = b"".join(iter(lambda: os.read(source, 64), b""))
    os.close(source)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError(f"the training in {config.run_dir} failed")
    return int(text)


def planned_bytes(config: Any) -> int:
    """What `mllm plan` says of that training, told how many pictures its rows have."""
    from mllm.plan import plan
    from mllm.stream.stream import TokenStream

    stream = TokenStream.from_config(config)
    steps = range(config.train.num_steps)
    pictures = max(int(stream.rows(step).num_images.sum()) for step in steps)
    images_per_row = round(pictures / config.train.global_batch_size)
    result = plan(config, world_size=1, device="cpu", mfu=0.5, images_per_row=images_per_row)
    return result["memory"]["peak"]


def main(folder: Path, sizes: list[str]) -> None:
    """Prints one JSON line for each size and stage. All trainings come before anything that counts
    threads or fills caches in this process, which they would inherit.
    """
    if not (folder / "tokenizer").exists():
        code = f"from mllm.bench.plan import *; build_world(Path({str(folder)!r}))"
        subprocess.run([sys.executable, "-c", code], check=True, stdout=sys.stderr)
    configs = {(size, stage): config_of(folder, size, stage) for size in sizes for stage in STAGES}
    measured = {key: measured_bytes(config) for key, config in configs.items()}
    for (size, stage), config in configs.items():
        row = {
            "size": size,
            "stage": stage,
            "is_fitted": size in FITTED,
            "planned_bytes": planned_bytes(config),
            "measured_bytes": measured[size, stage],
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or [*FITTED, *HELD_OUT])
