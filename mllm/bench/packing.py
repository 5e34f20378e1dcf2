"""Packing from lengths: documents a second on one core and padding, beside TRL and binpacking.

Lengths are log-normal, clipped to the row. Ours also writes the plan to disk. TRL's best-fit
decreasing (`pack_dataset`) moves the tokens as well, into an Arrow table; binpacking returns lists
of lengths. Each peer packs as many documents as it does in some seconds.
"""

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from corpora.ragged import Ragged
from mllm.bench.machine import describe, interleaved
from mllm.stream.encode import image_span
from mllm.stream.lengths import TokenLengths
from mllm.stream.pack import pack
from mllm.stream.plan import load_plan, write_plan

NUM_DOCUMENTS = 1_000_000
NUM_LATENTS = 64
SEQ_LENS = (512, 2048, 8192)
PEER_SEQ_LEN = 2048
PEER_DOCUMENTS = {"trl": 20_000, "binpacking": 4_000}
ROUNDS = 3


def run() -> dict[str, Any]:
    cases = {
        f"{kind}, seq_len {seq_len}": (seq_len, _lengths(seq_len, with_images=kind == "images"))
        for seq_len in SEQ_LENS
        for kind in ("text", "images")
    }
    padding: dict[str, float] = {}
    sides: dict[str, Callable[[], float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (seq_len, lengths) in cases.items():
            sides[name] = partial(_ours, name, seq_len, lengths, padding, Path(folder) / "plan")
        tokens = cases[f"text, seq_len {PEER_SEQ_LEN}"][1].text_tokens
        peers = {"trl": _trl, "binpacking": _binpacking}
        found = [name for name in peers if find_spec(name)]
        for name in found:
            mine = tokens[: PEER_DOCUMENTS[name]]
            sides[name] = partial(peers[name], mine, padding)
        for work in sides.values():
            work()  # compiles, imports
        rates = interleaved(sides, ROUNDS)
    return {
        "machine": describe("numba", *found),
        "documents": NUM_DOCUMENTS,
        "peer_documents": PEER_DOCUMENTS,
        "sides": {name: {**rates[name], "padding": padding[name]} for name in sides},
        "not_run": [name for name in peers if name not in found],
    }


def _lengths(seq_len: int, *, with_images: bool) -> TokenLengths:
    """Texts of a sixth of a row at the median; with images, a third of it and up to four."""
    draws = np.random.default_rng(seq_len)
    num_images = np.zeros(NUM_DOCUMENTS, dtype=np.uint16)
    median = seq_len / 6
    if with_images:
        num_images = draws.integers(0, 5, NUM_DOCUMENTS).astype(np.uint16)
        median = seq_len / 18
    room = seq_len - num_images.astype(np.int64) * image_span(NUM_LATENTS)
    text_tokens = np.clip(draws.lognormal(np.log(median), 1, NUM_DOCUMENTS), 3, room)
    images = Ragged.from_counts(num_images)
    return TokenLengths(
        text_tokens=text_tokens.astype(np.uint32),
        images=images,
        image_offsets=np.ones(images.total, dtype=np.uint32),
        total_text_tokens=int(text_tokens.astype(np.uint32).sum(dtype=np.int64)),
        total_scored_tokens=0,
        num_dropped=0,
        dropped={},
    )


def _ours(
    name: str, seq_len: int, lengths: TokenLengths, padding: dict[str, float], folder: Path
) -> float:
    folder.mkdir()
    rows = pack(lengths, seq_len=seq_len, num_latents=NUM_LATENTS)
    write_plan(rows, lengths, folder, seq_len=seq_len)
    plan = load_plan(folder, lengths, num_latents=NUM_LATENTS)
    padding[name] = plan.num_padding / (plan.num_rows * seq_len)
    shutil.rmtree(folder)
    return lengths.num_samples


def _trl(tokens: np.ndarray, padding: dict[str, float]) -> float:
    import pyarrow
    from datasets import Dataset
    from trl.data_utils import pack_dataset

    offsets = np.concatenate([[0], np.cumsum(tokens)]).astype(np.int32)
    ids = pyarrow.ListArray.from_arrays(offsets, pyarrow.array(np.zeros(offsets[-1], np.int32)))
    documents = Dataset(pyarrow.table({"input_ids": ids}))
    rows = pack_dataset(documents, PEER_SEQ_LEN, "bfd", {"batch_size": len(tokens)})
    padding["trl"] = 1 - int(tokens.sum()) / (len(rows) * PEER_SEQ_LEN)
    return len(tokens)


def _binpacking(tokens: np.ndarray, padding: dict[str, float]) -> float:
    from binpacking import to_constant_volume

    rows = to_constant_volume(tokens.tolist(), PEER_SEQ_LEN)
    padding["binpacking"] = 1 - int(tokens.sum()) / (len(rows) * PEER_SEQ_LEN)
    return len(tokens)


def lines(result: dict[str, Any]) -> list[str]:
    told = [
        f"{name}: {side['median']:,.0f} documents/s, {side['padding']:.3%} padding"
        + (f" ({documents:,} documents)" if documents else "")
        for name, side in result["sides"].items()
        for documents in [result["peer_documents"].get(name)]
    ]
    told += [f"{name}: not run (pip install --no-deps {name})" for name in result["not_run"]]
    return told
