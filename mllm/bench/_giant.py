"""A corpus of up to 10^9 samples that lies on disk, for `seek`: real shards behind many names.

Of each kind (text, pairs, interleaved) one real shard of SHARD_SAMPLES samples is written, with
log-normal text lengths. A corpus is that shard under 30,000 to 50,000 names (links) and an index
with an entry for every sample. Index, token lengths and plan have their full size on disk, except
the arrays that neither planning nor reading touches (hashes, byte counts, picture sizes): those are
sparse files.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from corpora.document import Document, ImageSegment, Segment, TextSegment
from corpora.reader import Corpus
from corpora.shards import ShardWriter
from corpora.sidecar import VERSION, Sidecar, index_shard
from mllm.command import progress
from mllm.files import fingerprint, write_json
from mllm.stream.array_file import ArrayFile, RaggedFile
from mllm.stream.lengths import LengthsPart, TokenLengths, write_lengths
from mllm.stream.measure import lengths_dir, open_lengths
from tokenizer.tokenizer import Tokenizer
from tokenizer.train import train_tokenizer

SHARD_SAMPLES = 10_000
SHARES = {"text": 0.3, "pairs": 0.5, "interleaved": 0.2}  # of the samples
MEDIAN_WORDS = {"text": 120, "pairs": 10, "interleaved": 60}
SPREAD = 0.9  # sigma of the logarithm of the number of words
SEQ_LEN, NUM_LATENTS, GLOBAL_BATCH_SIZE = 1024, 16, 256
UNREAD = {  # itemsize and axes of arrays that stay sparse
    "text_bytes": ("<u4", ()),
    "content_hashes": ("|u1", (16,)),
    "key_hashes": ("<u8", ()),
    "url_hashes": ("<u8", ()),
}


def build(root: Path, num_samples: int) -> Path:
    """Makes the three corpora under `root`, unless they are whole; gives back a training config."""
    config_path = root / "config.yaml"
    if config_path.is_file():
        return config_path
    for kind in SHARES:
        _write_base(root / "base" / kind, kind)
    train_tokenizer([root / "base" / kind for kind in SHARES], root / "tokenizer", 800, 1 << 20)
    tokenizer = Tokenizer(root / "tokenizer")
    for kind, share in SHARES.items():
        num_shards = max(1, round(num_samples * share / SHARD_SAMPLES))
        corpus = _multiply(root / "base" / kind, root / kind, num_shards)
        lengths = open_lengths(Corpus(root / "base" / kind), tokenizer)
        folder = lengths_dir(corpus, tokenizer)
        folder.mkdir()
        write_lengths(_repeated(lengths, num_shards, kind), folder)
    config = {
        "run_dir": str(root / "run"),
        "tokenizer": str(root / "tokenizer"),
        "seed": 1,
        "data": {
            "mixture": [
                {"name": name, "path": str(root / name), "weight": weight}
                for name, weight in (("text", 0.5), ("pairs", 0.5), ("interleaved", 0.2))
            ]
        },
        "model": {"seq_len": SEQ_LEN, "num_latents": NUM_LATENTS},
        "train": {"global_batch_size": GLOBAL_BATCH_SIZE, "micro_batch_size": GLOBAL_BATCH_SIZE},
    }
    config_path.write_text(yaml.safe_dump(config))
    return config_path


def _write_base(out_dir: Path, kind: str) -> None:
    if (out_dir / "index" / "index.json").is_file():
        return
    draws = np.random.default_rng(0)
    words = ["".join(map(chr, draws.integers(97, 123, n))) for n in draws.integers(2, 9, 500)]
    pictures = [_picture(draws) for _ in range(64)]

    def text(share: float = 1.0) -> TextSegment:
        count = 1 + int(draws.lognormal(np.log(MEDIAN_WORDS[kind] * share), SPREAD))
        return TextSegment(" ".join(words[i] for i in draws.integers(0, len(words), count)))

    def picture() -> ImageSegment:
        return ImageSegment(pictures[draws.integers(len(pictures))])

    with ShardWriter(out_dir, samples_per_shard=SHARD_SAMPLES) as writer:
        for number in range(SHARD_SAMPLES):
            segments: list[Segment]
            if kind == "text":
                segments = [text()]
            elif kind == "pairs":
                segments = [picture(), text()]
            else:
                segments = []
                for _ in range(draws.integers(2, 6)):
                    segments += [picture(), text(0.3)]
            writer.write(Document(f"{number:05d}", tuple(segments)))


def _picture(draws: np.random.Generator) -> bytes:
    file = io.BytesIO()
    small = draws.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(small).resize((64, 64)).save(file, "JPEG")
    return file.getvalue()


def _multiply(base_dir: Path, out_dir: Path, num_shards: int) -> Corpus:
    """A corpus whose every shard is `base_dir`'s, and its index."""
    shard = index_shard(base_dir, "shard-000000.tar")
    arrays = out_dir / "index" / "arrays-giant"
    arrays.mkdir(parents=True, exist_ok=True)
    target = (base_dir / "shard-000000.tar").resolve()
    names = [f"shard-{number:06d}.tar" for number in range(num_shards)]
    for name in names:
        link = out_dir / name
        if not link.is_symlink():
            link.symlink_to(target)
    _write_arrays(shard, arrays, num_shards)
    index = {
        "version": VERSION,
        "arrays": arrays.name,
        "fingerprint": fingerprint([str(base_dir.name), num_shards]),
        "num_samples": num_shards * SHARD_SAMPLES,
        "num_bad_samples": 0,
        "extensions": shard.summary.extensions,
        "shards": names,
    }
    write_json(out_dir / "index" / "index.json", index)
    return Corpus(out_dir)


def _write_arrays(shard: Sidecar, folder: Path, num_shards: int) -> None:
    samples, members = shard.samples, shard.members
    num_samples = num_shards * SHARD_SAMPLES
    with (
        ArrayFile(folder / "member_extensions.npy", np.uint8) as extensions,
        ArrayFile(folder / "member_blocks.npy", np.uint32) as blocks,
        ArrayFile(folder / "member_sizes.npy", np.uint32) as sizes,
        ArrayFile(folder / "key_bytes.npy", np.uint8) as key_bytes,
        RaggedFile(folder, "members", np.uint16) as member_counts,
        RaggedFile(folder, "keys", np.uint16) as key_counts,
        RaggedFile(folder, "images", np.uint16) as image_counts,
    ):
        keys = np.empty((SHARD_SAMPLES, 11), np.uint8)  # SSSSSSNNNNN: shard, sample
        keys[:, 6:] = shard.key_bytes.reshape(SHARD_SAMPLES, 5)
        lengths = np.full(SHARD_SAMPLES, 11)
        for number in progress(range(num_shards), f"index of {folder.parent.parent.name}"):
            keys[:, :6] = np.frombuffer(f"{number:06d}".encode(), np.uint8)
            extensions.append(members["extension"])
            blocks.append(members["block"])
            sizes.append(members["size"])
            key_bytes.append(keys.reshape(-1))
            member_counts.append(samples["num_members"])
            key_counts.append(lengths)
            image_counts.append(samples["num_images"])
    starts = np.arange(num_shards + 1, dtype=np.int64) * SHARD_SAMPLES
    np.save(folder / "shard_starts.npy", starts)
    np.save(folder / "shard_sizes.npy", np.full(num_shards, shard.summary.size))
    for name, (kind, axes) in UNREAD.items():
        _sparse(folder / f"{name}.npy", kind, (num_samples, *axes))
    _sparse(folder / "image_sizes.npy", "<u2", (num_shards * shard.summary.num_images, 2))


def _sparse(path: Path, kind: str, shape: tuple[int, ...]) -> None:
    """An .npy file of zeros that takes no space."""
    with open(path, "wb") as file:
        header = {"descr": kind, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + int(np.prod(shape)) * np.dtype(kind).itemsize)


def _repeated(lengths: TokenLengths, num_shards: int, kind: str) -> Iterator[LengthsPart]:
    part = LengthsPart(
        text_tokens=lengths.text_tokens,
        num_images=lengths.images.counts,
        image_offsets=lengths.image_offsets,
        scored_tokens=lengths.total_scored_tokens,
        dropped=[],
    )
    for _ in progress(range(num_shards), f"token lengths of {kind}"):
        yield part


def disk_bytes(root: Path) -> int:
    """What the folder takes on disk, holes not counted."""
    paths = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    return sum(path.stat().st_blocks * 512 for path in paths)
