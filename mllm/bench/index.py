"""Indexing speed per process beside webdataset and wids, and opening a corpus of 100,000 shards.

The shards are what img2dataset writes: webdataset's TarWriter, JPEG + txt + json a sample. Peers
do less: `wids` hashes the tar and counts its samples (`widsindex create`); webdataset's own reader
groups members into samples. Ours also parses JSON, reads picture sizes, hashes every sample and
writes the sidecar. webdataset 1.0.2 no longer ships wids; the `wids` folder of the wheel of
webdataset 0.2.111 on PYTHONPATH brings it back, otherwise that side is left out.
"""

import io
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from PIL import Image

from corpora.consolidate import consolidate
from corpora.reader import Corpus
from corpora.sidecar import index_shard, write_sidecar
from mllm.bench import machine

KINDS = {"256 px, about 20 KB": (256, 82, 3000), "224 px, about 10 KB": (224, 58, 5000)}
ROUNDS = 5
NUM_SHARDS = 100_000
SHARD = "00000.tar"


def run() -> dict[str, Any]:
    """MB of undecoded tar a second for each side; seconds to open a corpus."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return {
            "machine": machine.describe("webdataset", "numpy", "pillow"),
            "indexing": {kind: _indexing(folder, kind) for kind in KINDS},
            "opening": _opening(folder / "many"),
        }


def lines(result: dict[str, Any]) -> list[str]:
    shown = []
    for kind, found in result["indexing"].items():
        rates = ", ".join(
            f"{side} {r['median']:,.0f} ({found['MB per CPU second'][side]:,.0f} a CPU second)"
            for side, r in found["MB/s"].items()
        )
        shown.append(f"MB/s of one process, {kind} ({found['sample_bytes']:,} B a sample): {rates}")
    opening = result["opening"]
    shown.append(
        f"opening {opening['shards']:,} shards: {opening['open_seconds']:.2f} s (median of "
        f"{ROUNDS}), first sample after {opening['first_sample_seconds'] * 1000:.1f} ms more; "
        f"stat of every shard alone: {opening['stat_seconds']:.2f} s"
    )
    return shown


def _indexing(folder: Path, kind: str) -> dict[str, Any]:
    side, quality, num_samples = KINDS[kind]
    path = folder / f"{side}" / SHARD
    path.parent.mkdir()
    _write_shard(path, side, quality, num_samples)
    megabytes = path.stat().st_size / 1e6

    def ours() -> float:
        write_sidecar(index_shard(path.parent, SHARD), path.with_suffix(".npz"))
        return megabytes

    def webdataset_reader() -> float:
        data = webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)
        assert sum(1 for _ in data) == num_samples
        return megabytes

    sides: dict[str, Callable[[], float]] = {"ours": ours, "webdataset reader": webdataset_reader}
    try:
        from wids import wids
    except ImportError:
        pass
    else:

        def wids_index() -> float:
            wids.compute_file_md5sum(str(path))
            assert wids.compute_num_samples(str(path)) == num_samples
            return megabytes

        sides["wids index"] = wids_index
    cpu_rates: dict[str, list[float]] = {name: [] for name in sides}

    def measured(name: str) -> float:
        began = time.process_time()
        sides[name]()
        cpu_rates[name].append(megabytes / (time.process_time() - began))
        return megabytes

    rates = machine.interleaved({name: partial(measured, name) for name in sides}, ROUNDS)
    return {
        "samples": num_samples,
        "sample_bytes": round(megabytes * 1e6 / num_samples),
        "MB/s": rates,
        # What one core does while others are at work on the machine.
        "MB per CPU second": {name: float(np.median(r)) for name, r in cpu_rates.items()},
    }


def _write_shard(path: Path, side: int, quality: int, num_samples: int) -> None:
    draws = np.random.default_rng(0)
    pictures = []
    for _ in range(20):
        coarse = draws.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((side, side)), np.int16)
        noisy = np.clip(smooth + draws.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, "JPEG", quality=quality)
        pictures.append(buffer.getvalue())
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for number in range(num_samples):
            key, caption = f"{number:09d}", f"picture {number} of something on a table"
            meta = {
                "caption": caption,
                "url": f"https://example.org/{number}.jpg",
                "key": key,
                "status": "success",
                "error_message": None,
                "width": side,
                "height": side,
                "original_width": 640,
                "original_height": 480,
                "exif": "{}",
                "sha256": f"{number:064x}",
            }
            sample = {"jpg": pictures[number % 20], "txt": caption.encode()}
            writer.write({"__key__": key, **sample, "json": json.dumps(meta).encode()})


def _opening(folder: Path) -> dict[str, Any]:
    """A corpus of NUM_SHARDS links to one shard of four samples."""
    folder.mkdir()
    _write_shard(folder / "first", 224, 60, 4)
    names = [f"{number:06d}.tar" for number in range(NUM_SHARDS)]
    for name in names:
        os.symlink("first", folder / name)
    sidecar = index_shard(folder, names[0])
    summaries = [replace(sidecar.summary, name=name) for name in names]
    consolidate((sidecar for _ in names), summaries, folder / "index")
    seconds: dict[str, list[float]] = {"open": [], "first_sample": [], "stat": []}
    for number in range(ROUNDS):
        began = time.perf_counter()
        corpus = Corpus(folder)
        opened = time.perf_counter()
        corpus.document(number * 4001 + len(corpus) // 2)
        read = time.perf_counter()
        for name in names:
            os.stat(folder / name)
        seconds["open"].append(opened - began)
        seconds["first_sample"].append(read - opened)
        seconds["stat"].append(time.perf_counter() - read)
    medians = {f"{what}_seconds": float(np.median(values)) for what, values in seconds.items()}
    return {"shards": NUM_SHARDS, "samples": len(corpus)} | medians
