"""Measuring token lengths: a corpus in parts, by several processes, going on after a kill.

    INDEX_DIR/tokens-....unfinished/parts/FIRST-STOP.npz    written whole, each by one process
    INDEX_DIR/tokens-.../                                   all parts in order, once all are there

Parts depend on the number of samples alone. So any number of processes measures the same, and what
one run has measured the next one keeps.
"""

import json
import multiprocessing
import os
import shutil
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from corpora.reader import Corpus
from corpora.workers import die_with_parent
from mllm.command import progress
from mllm.errors import BadSample, UserError
from mllm.files import write_aside
from mllm.stream.build_once import build_once
from mllm.stream.encode import text_layout
from mllm.stream.lengths import (
    LENGTHS_VERSION,
    LengthsPart,
    TokenLengths,
    load_lengths,
    write_lengths,
)
from mllm.stream.template import TEMPLATE_VERSION
from tokenizer.tokenizer import Tokenizer

ONE_PROCESS_BELOW = 20_000  # samples; starting processes costs more than it saves
AHEAD = 256  # samples whose texts are asked of the disk at once
LOOKED_AT = 100  # samples, until one can be read that says of what kind they are
MAX_IMAGES = 65_535  # of a sample, so that two bytes count them


def lengths_dir(corpus: Corpus, tokenizer: Tokenizer) -> Path:
    template = f"t{TEMPLATE_VERSION}" if has_turns(corpus) else ""
    version = f"{LENGTHS_VERSION}{template}"
    return corpus.index_dir / f"tokens-{version}-{tokenizer.fingerprint}-{corpus.fingerprint}"


def has_turns(corpus: Corpus) -> bool:
    """Whether a corpus holds conversations: whether its first sample that can be read is one.

    A folder holds one kind of corpus, as `mllm corpora import` writes it. In one that mixes kinds
    every sample is still encoded as what it is; only a new template would not be noticed before
    the first row whose length it changes, which stops the run.
    """
    for sample in range(min(len(corpus), LOOKED_AT)):
        try:
            return bool(corpus.text_document(sample).turns)
        except BadSample:
            continue
        except OSError as error:
            raise _cannot_read(error, corpus, sample) from None
    return False


def open_lengths(corpus: Corpus, tokenizer: Tokenizer, workers: int | None = None) -> TokenLengths:
    """Opens the sidecar of (corpus, tokenizer); measures first where it is absent.

    Args:
        workers: processes that measure; by default one a core, or one for a small corpus.

    Raises:
        UserError: The index's folder is not writable, the disk is full, a sample cannot be read,
            or a process was killed. What has been measured is kept.
    """
    folder = lengths_dir(corpus, tokenizer)
    if workers is None:
        is_small = len(corpus) < ONE_PROCESS_BELOW
        workers = 1 if is_small else len(os.sched_getaffinity(0))
    try:
        build_once(folder, lambda unfinished: _build(corpus, tokenizer, unfinished, workers))
    except BrokenProcessPool:
        raise UserError(
            f"{corpus.corpus_dir}: a process that measured token lengths was killed (out of "
            "memory?); run again, what is measured is kept"
        ) from None
    except OSError as error:
        raise cannot_write(error, folder, corpus) from None
    return load_lengths(folder)


def cannot_write(error: OSError, folder: Path, corpus: Corpus) -> UserError:
    """What to say when `folder`, beside the index of `corpus`, could not be built."""
    return UserError(
        f"{error.filename or folder}: cannot be written ({error.strerror}); make room, or index "
        "into a writable folder named like the source: `mllm corpora index "
        f"{corpus.corpus_dir} --index-dir D/SOURCE`, and set data.index_dir=D"
    )


def part_ranges(num_samples: int) -> list[range]:
    """What is measured at once: about a thousand parts, of some seconds or minutes each."""
    size = min(65_536, max(1024, num_samples // 1024))
    return [range(i, min(i + size, num_samples)) for i in range(0, num_samples, size)]


def _build(corpus: Corpus, tokenizer: Tokenizer, folder: Path, workers: int) -> None:
    parts_dir = folder / "parts"
    parts_dir.mkdir(exist_ok=True)
    parts = part_ranges(len(corpus))
    missing = [part for part in parts if not _part_path(parts_dir, part).is_file()]
    measured = _measure_all(corpus, tokenizer, parts_dir, missing, workers)
    each_sample = (sample for part in measured for sample in part)
    for _ in progress(each_sample, "token lengths", total=sum(map(len, missing))):
        pass
    write_lengths((_read_part(_part_path(parts_dir, part)) for part in parts), folder)
    shutil.rmtree(parts_dir)


def _measure_all(
    corpus: Corpus, tokenizer: Tokenizer, parts_dir: Path, parts: list[range], workers: int
) -> Iterator[range]:
    """Yields each part once it is written, in any order."""
    workers = min(workers, len(parts))
    if workers <= 1:
        for part in parts:
            _write_part(measure(corpus, tokenizer, part), _part_path(parts_dir, part))
            yield part
        return
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),  # a fork would copy threads and locks
        initializer=_start_worker,
        initargs=(corpus, tokenizer.model_path, parts_dir),
    )
    try:
        futures = {pool.submit(_work, part): part for part in parts}
        for future in as_completed(futures):
            future.result()
            yield futures[future]
    finally:
        pool.shutdown(cancel_futures=True)


# ------------------------------------------------------------------ in a worker

_worker: tuple[Corpus, Tokenizer, Path]


def _start_worker(corpus: Corpus, model_path: Path, parts_dir: Path) -> None:
    global _worker
    _worker = (corpus, Tokenizer(model_path), parts_dir)
    die_with_parent()


def _work(part: range) -> None:
    corpus, tokenizer, parts_dir = _worker
    _write_part(measure(corpus, tokenizer, part), _part_path(parts_dir, part))


# ------------------------------------------------------------------ a part


def measure(corpus: Corpus, tokenizer: Tokenizer, samples: range) -> LengthsPart:
    """Reads and tokenises consecutive samples."""
    text_tokens = np.zeros(len(samples), dtype=np.uint32)
    num_images = np.zeros(len(samples), dtype=np.uint16)
    image_offsets: list[int] = []
    scored_tokens = 0
    dropped = []
    for place, sample in enumerate(samples):
        try:
            if place % AHEAD == 0:
                corpus.expect_texts(samples[place : place + AHEAD])
            layout = text_layout(corpus.text_document(sample), tokenizer)
            if len(layout.image_offsets) > MAX_IMAGES:
                raise BadSample(f"{len(layout.image_offsets)} images, over {MAX_IMAGES}")
        except BadSample as error:
            dropped.append((corpus.key(sample), str(error)))
            continue
        except OSError as error:
            raise _cannot_read(error, corpus, sample) from None
        text_tokens[place], num_images[place] = layout.text_tokens, len(layout.image_offsets)
        image_offsets += layout.image_offsets
        scored_tokens += layout.scored_tokens
    offsets = np.array(image_offsets, dtype=np.uint32)
    return LengthsPart(text_tokens, num_images, offsets, scored_tokens, dropped)


def _cannot_read(error: OSError, corpus: Corpus, sample: int) -> UserError:
    return UserError(
        f"{corpus.corpus_dir}: cannot read sample {corpus.key(sample)} ({error}); mend the disk or "
        "the mount and run again, what is measured is kept"
    )


def _part_path(parts_dir: Path, part: range) -> Path:
    return parts_dir / f"{part.start:012d}-{part.stop:012d}.npz"


def _write_part(part: LengthsPart, path: Path) -> None:
    with write_aside(path, "wb") as file:
        np.savez(
            file,
            text_tokens=part.text_tokens,
            num_images=part.num_images,
            image_offsets=part.image_offsets,
            scored_tokens=np.int64(part.scored_tokens),
            dropped=np.frombuffer(json.dumps(part.dropped).encode(), dtype=np.uint8),
        )


def _read_part(path: Path) -> LengthsPart:
    try:
        with np.load(path) as arrays:
            return LengthsPart(
                arrays["text_tokens"],
                arrays["num_images"],
                arrays["image_offsets"],
                int(arrays["scored_tokens"]),
                [(key, reason) for key, reason in json.loads(arrays["dropped"].tobytes())],
            )
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: damaged ({error}); delete it and run again") from None
