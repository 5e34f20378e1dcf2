"""Decoded 224 px JPEG pairs a second with 2 worker processes: our loader and webdataset's pipeline.

Both read the same shards, decode with the same function and give uint8 (3, 224, 224) pictures and
token ids. Ours packs the pairs into rows of a TokenStream (or hands out PairStream batches), in an
order that resumes anywhere; webdataset's reads its shards from front to back. Undecoded: shards to
bytes in one process, without workers.
"""

import contextlib
import io
import tempfile
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import mllm.images
from corpora.document import Document, ImageSegment, TextSegment
from corpora.reader import Corpus
from corpora.shards import ShardWriter
from mllm.bench import machine
from mllm.config import parse_config
from mllm.images import read_pixels
from mllm.stream.batch import Batch
from mllm.stream.loader import Loader
from mllm.stream.pairs import PairBatch, PairStream
from mllm.stream.source import Source
from mllm.stream.stream import TokenStream
from tokenizer.specials import BOS_ID, EOS_ID, PAD_ID
from tokenizer.tokenizer import Tokenizer
from tokenizer.train import train_tokenizer

NUM_PAIRS = 4000  # more than PixelCache keeps any of: every picture is decoded each time
SHARDS = 8
SIZE = 224
WORKERS = 2
ROUNDS = 3
EPOCHS = 2
BATCH = 64  # pairs
SEQ_LEN = 512


def run() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        root = Path(place)
        _write_pairs(root / "pairs")
        train_tokenizer([root / "pairs"], root / "tokenizer", 300, 200_000)
        tokenizer = Tokenizer(root / "tokenizer")
        shards = sorted(str(path) for path in (root / "pairs").glob("*.tar"))
        rows = [Source("pairs", root / "pairs", 1.0)]
        settings: dict[str, Any] = dict(
            tokenizer=tokenizer,
            seq_len=SEQ_LEN,
            num_latents=64,
            global_batch_size=8,
            seed=0,
            image_size=SIZE,
        )
        config = _pair_config(root)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        sides: dict[str, machine.Side] = {
            "webdataset, PIL": lambda: _webdataset(shards, tokenizer, by_pil=True),
            "our rows, PIL": lambda: _ours(PilTokenStream(rows, **settings)),
            "our pairs, PIL": lambda: _ours(PilPairStream(config)),
        }
        if mllm.images.simplejpeg is not None:
            sides |= {
                "webdataset, simplejpeg": lambda: _webdataset(shards, tokenizer, by_pil=False),
                "our rows, simplejpeg": lambda: _ours(TokenStream(rows, **settings)),
                "our pairs, simplejpeg": lambda: _ours(PairStream(config)),
            }
        sides["our rows, PIL"]()  # starts the server that workers are forked from
        decoded = machine.interleaved(sides, ROUNDS)
        undecoded = machine.interleaved(
            {
                "webdataset": lambda: _webdataset_undecoded(shards),
                "ours": lambda: _ours_undecoded(root / "pairs"),
            },
            ROUNDS,
        )
        size = sum(Path(shard).stat().st_size for shard in shards)
    return {
        **machine.describe("webdataset", "torch", "pillow", "numpy"),
        "pairs": NUM_PAIRS,
        "bytes_per_pair": size / NUM_PAIRS,
        "workers": WORKERS,
        "pairs_per_second": {"decoded": decoded, "undecoded": undecoded},
    }


def lines(result: dict[str, Any]) -> list[str]:
    return [
        f"{kind:10} {side:24} {values['median']:8,.0f} pairs/s"
        for kind, sides in result["pairs_per_second"].items()
        for side, values in sides.items()
    ]


# ------------------------------------------------------------------------------------------ sides
class PilTokenStream(TokenStream):
    """Decodes by PIL, also in its workers."""

    def batch(self, *arguments: Any, **settings: Any) -> Batch:
        mllm.images.simplejpeg = None
        return super().batch(*arguments, **settings)


class PilPairStream(PairStream):
    """Decodes by PIL, also in its workers."""

    def batch(self, *arguments: Any, **settings: Any) -> PairBatch:
        mllm.images.simplejpeg = None
        return super().batch(*arguments, **settings)


def _ours(stream: TokenStream | PairStream) -> tuple[float, float]:
    """Pairs of two epochs from fresh workers, and the seconds since the first of them came."""
    per_epoch = NUM_PAIRS // BATCH if isinstance(stream, PairStream) else stream_steps(stream)
    with Loader(
        stream,
        rank=0,
        world_size=1,
        micro_batch_size=stream.global_batch_size,
        end_step=EPOCHS * per_epoch,
        num_workers=WORKERS,
    ) as loader:
        return _after_first(
            sum(row.images for batch in found for row in batch.rows) for _, found in loader
        )


def _after_first(counts: Iterable[int]) -> tuple[float, float]:
    """Items after the first batch, and the seconds they took: the start of workers is left out."""
    counts = iter(counts)
    next(counts)
    began = time.perf_counter()
    return sum(counts), time.perf_counter() - began


def stream_steps(stream: TokenStream) -> int:
    """Steps of one epoch."""
    return stream.sources[0].plan.num_rows // stream.global_batch_size


def _webdataset(shards: list[str], tokenizer: Tokenizer, *, by_pil: bool) -> tuple[float, float]:
    import webdataset as wds

    def decode(sample: dict[str, bytes]) -> tuple[np.ndarray, torch.Tensor]:
        if by_pil:
            mllm.images.simplejpeg = None  # in the worker, a fork
        pixels = read_pixels(sample["jpg"], SIZE, "squash")
        ids = [BOS_ID, *tokenizer.encode(sample["txt"].decode())[:22], EOS_ID]
        return pixels, torch.tensor(ids + [PAD_ID] * (24 - len(ids)))

    dataset = wds.WebDataset(shards * EPOCHS, shardshuffle=False).map(decode).batched(BATCH)
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=WORKERS)
    return _after_first(len(pixels) for pixels, _ in loader)


def _webdataset_undecoded(shards: list[str]) -> float:
    import webdataset as wds

    return sum(1 for _ in wds.WebDataset(shards, shardshuffle=False))


def _ours_undecoded(corpus_dir: Path) -> float:
    corpus = Corpus(corpus_dir)
    return sum(1 for i in range(len(corpus)) if corpus.members(i))


# ---------------------------------------------------------------------------------------- fixtures
def _write_pairs(corpus_dir: Path) -> None:
    """Smooth random fields with a little noise: JPEGs of 10 to 20 KB, as of photographs."""
    draws = np.random.default_rng(0)
    with ShardWriter(corpus_dir, samples_per_shard=NUM_PAIRS // SHARDS) as writer:
        for number in range(NUM_PAIRS):
            field = np.zeros((SIZE, SIZE, 3), np.float32)
            for side in (4, 32):
                coarse = draws.integers(0, 256, (side, side, 3)).astype(np.uint8)
                large = Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
                field += np.asarray(large, np.float32) / 2
            field += draws.normal(0, 6, (SIZE, SIZE, 1))
            file = io.BytesIO()
            Image.fromarray(np.clip(field, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
            caption = " ".join(draws.choice(machine.WORDS, 12))
            segments = (ImageSegment(file.getvalue()), TextSegment(caption))
            writer.write(Document(f"{number:06d}", segments))


def _pair_config(root: Path) -> Any:
    return parse_config(
        {
            "run_dir": str(root / "run"),
            "tokenizer": str(root / "tokenizer"),
            "stage": "vision",
            "data": {"mixture": [{"name": "pairs", "path": str(root / "pairs")}]},
            "model": {"vision": {"image_size": SIZE, "patch_size": 16}},
            "train": {"micro_batch_size": BATCH, "global_batch_size": BATCH},
        },
        "the benchmark's config",
    )
