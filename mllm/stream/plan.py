"""The pack plan of a corpus on disk: which pieces stand in which row.

    TOKENS_DIR/plan-VERSION-seqT-latentsL-joinS/plan.json     totals
                                               /row_*.npy     9 bytes a row and
                                               /pieces_*.npy  2, pieces of each row (Ragged)
                                               /piece_samples.npy  4 bytes a piece
                                               /cuts_*.npy    2, cut pieces of each row (Ragged)
                                               /cut_*.npy     10 bytes a cut piece

Most pieces are whole documents and need no more than their sample's number; where a cut piece
starts and stops is stored apart. Everything is memory-mapped: opening reads `plan.json` alone, and
a row costs a few reads of a page each, whatever the size of the corpus.
"""

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from corpora.ragged import Ragged
from corpora.reader import Corpus
from mllm.errors import UserError
from mllm.files import write_json
from mllm.stream.array_file import ArrayFile, RaggedFile
from mllm.stream.build_once import build_once
from mllm.stream.lengths import TokenLengths
from mllm.stream.measure import cannot_write, lengths_dir, open_lengths
from tokenizer.tokenizer import Tokenizer

PACKING_VERSION = 3  # part of the stream's fingerprint: raise it when plans change

Piece = tuple[int, int, int]  # sample, first token of it that stands in the row, one past the last


@dataclass(frozen=True)
class PackedRows:
    """r consecutive rows of a plan, made of m pieces of which c are cut."""

    is_joined: np.ndarray  # bool (r,)
    row_images: np.ndarray  # int32 (r,)
    row_tokens: np.ndarray  # int32 (r,); positions that are not padding
    row_pieces: np.ndarray  # int64 (r,), number of pieces
    row_cuts: np.ndarray  # int64 (r,), number of cut pieces
    piece_samples: np.ndarray  # int64 (m,)
    cut_places: np.ndarray  # int64 (c,), which piece of its row is cut
    cut_starts: np.ndarray  # int64 (c,), first token of the document that stands in the row
    cut_stops: np.ndarray  # int64 (c,), one past the last


@dataclass(frozen=True)
class PackPlan:
    """R rows; `pieces(row)` says what stands in one."""

    lengths: TokenLengths
    num_latents: int
    is_joined: np.ndarray  # bool (R,)
    row_images: np.ndarray  # int32 (R,)
    row_tokens: np.ndarray  # int32 (R,); positions that are not padding
    row_pieces: Ragged  # R runs of piece_samples
    piece_samples: np.ndarray  # uint32 (M,), or int64 for 2^32 samples and more
    row_cuts: Ragged  # R runs of the cut arrays
    cut_places: np.ndarray  # uint16 (C,), or uint32; which piece of its row is cut
    cut_starts: np.ndarray  # uint32 (C,)
    cut_stops: np.ndarray  # uint32 (C,)
    num_joined: int  # rows
    num_cuts: int  # pieces less documents
    num_padding: int  # positions
    total_images: int

    @property
    def num_rows(self) -> int:
        return len(self.is_joined)

    def pieces(self, row: int) -> list[Piece]:
        """What stands in a row, in order; `start` and `stop` count tokens of the document."""
        begin, end = self.row_pieces.span(row)
        pieces = [
            (sample, 0, self.lengths.length(sample, self.num_latents))
            for sample in self.piece_samples[begin:end].tolist()
        ]
        for cut in range(*self.row_cuts.span(row)):
            place = int(self.cut_places[cut])
            start, stop = int(self.cut_starts[cut]), int(self.cut_stops[cut])
            pieces[place] = (pieces[place][0], start, stop)
        return pieces

    def spans(self, row: int) -> list[tuple[int, int]]:
        """Where each piece stands in its row: first position, one past the last.

        In a joined row the first `<s>`, and the `</s>` after a piece that stops early, belong to
        none.
        """
        is_joined = bool(self.is_joined[row])
        spans, end = [], int(is_joined)
        for sample, start, stop in self.pieces(row):
            begin = end
            end += stop - start - (is_joined and start == 0)  # the row's <s> is the document's
            spans.append((begin, end))
            end += is_joined and stop < self.lengths.length(sample, self.num_latents)
        return spans


def open_plan(
    corpus: Corpus,
    tokenizer: Tokenizer,
    *,
    seq_len: int,
    num_latents: int,
    join_share: float,
    workers: int | None = None,
) -> tuple[TokenLengths, PackPlan]:
    """Opens a corpus's token lengths and plan; measures and plans first where they are absent.

    Args:
        seq_len: T, positions of a row.
        num_latents: L, slots of an image.
        join_share: share of the rows that are one context, 0 .. 1.
        workers: processes that measure; by default one a core, or one for a small corpus. Planning
            takes one: it handles millions of documents a second.

    Raises:
        UserError: An image fits no row, the index's folder is not writable, or a file is damaged.
    """
    lengths = open_lengths(corpus, tokenizer, workers)
    folder = lengths_dir(corpus, tokenizer) / (
        f"plan-{PACKING_VERSION}-seq{seq_len}-latents{num_latents}-join{float(join_share)}"
    )

    def fill(aside: Path) -> None:
        # numba takes a second to import; whoever finds the plan whole needs none of it.
        try:
            from mllm.stream.pack import pack
        except RuntimeError as error:  # it finds no writable place for what it compiles
            raise UserError(f"{error}; set NUMBA_CACHE_DIR to a writable folder") from None

        rows = pack(lengths, seq_len=seq_len, num_latents=num_latents, join_share=join_share)
        try:
            write_plan(rows, lengths, aside, seq_len=seq_len)
        except BaseException:
            shutil.rmtree(aside)
            raise

    try:
        build_once(folder, fill)
    except OSError as error:
        raise cannot_write(error, folder, corpus) from None
    return lengths, load_plan(folder, lengths, num_latents=num_latents)


def write_plan(
    parts: Iterable[PackedRows], lengths: TokenLengths, folder: Path, *, seq_len: int
) -> None:
    """Writes what `load_plan` reads; holds one part at a time."""
    sample_kind = np.uint32 if lengths.num_samples < 1 << 32 else np.int64
    count_kind = np.uint16 if seq_len < 1 << 16 else np.uint32  # a piece has a token or more
    num_joined = num_tokens = total_images = 0
    with (
        ArrayFile(folder / "row_is_joined.npy", np.bool_) as is_joined,
        ArrayFile(folder / "row_images.npy", np.int32) as row_images,
        ArrayFile(folder / "row_tokens.npy", np.int32) as row_tokens,
        RaggedFile(folder, "pieces", count_kind) as row_pieces,
        ArrayFile(folder / "piece_samples.npy", sample_kind) as piece_samples,
        RaggedFile(folder, "cuts", count_kind) as row_cuts,
        ArrayFile(folder / "cut_places.npy", count_kind) as cut_places,
        ArrayFile(folder / "cut_starts.npy", np.uint32) as cut_starts,
        ArrayFile(folder / "cut_stops.npy", np.uint32) as cut_stops,
    ):
        num_starts = 0
        for part in parts:
            is_joined.append(part.is_joined)
            row_images.append(part.row_images)
            row_tokens.append(part.row_tokens)
            row_pieces.append(part.row_pieces)
            piece_samples.append(part.piece_samples)
            row_cuts.append(part.row_cuts)
            cut_places.append(part.cut_places)
            cut_starts.append(part.cut_starts)
            cut_stops.append(part.cut_stops)
            num_joined += int(part.is_joined.sum())
            num_tokens += int(part.row_tokens.sum(dtype=np.int64))
            total_images += int(part.row_images.sum(dtype=np.int64))
            num_starts += int((part.cut_starts > 0).sum())
        num_rows = is_joined.length
    write_json(
        folder / "plan.json",
        {
            "num_joined": num_joined,
            "num_cuts": num_starts,
            "num_padding": num_rows * seq_len - num_tokens,
            "total_images": total_images,
        },
    )


def load_plan(folder: Path, lengths: TokenLengths, *, num_latents: int) -> PackPlan:
    """Memory-maps a plan. UserError when a file of it is missing or cut."""

    def load(name: str) -> np.ndarray:
        return np.load(folder / f"{name}.npy", mmap_mode="r").view(np.ndarray)

    try:
        return PackPlan(
            lengths=lengths,
            num_latents=num_latents,
            is_joined=load("row_is_joined"),
            row_images=load("row_images"),
            row_tokens=load("row_tokens"),
            row_pieces=Ragged(load("pieces_counts"), load("pieces_blocks")),
            piece_samples=load("piece_samples"),
            row_cuts=Ragged(load("cuts_counts"), load("cuts_blocks")),
            cut_places=load("cut_places"),
            cut_starts=load("cut_starts"),
            cut_stops=load("cut_stops"),
            **json.loads((folder / "plan.json").read_bytes()),
        )
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder}: damaged ({error}); delete it, to plan again") from None
