"""The token stream: step in, this rank's rows out. No position is kept anywhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import numpy as np

from mllm.errors import UserError
from mllm.images import Resize
from mllm.stream.batch import Batch, RowInfo
from mllm.stream.compose import BatchDraft
from mllm.stream.deal import deal
from mllm.stream.mixture import integer_shares
from mllm.stream.order import Order, OrderedRows, Window
from mllm.stream.permute import hash_key
from mllm.stream.pixels import PixelCache
from mllm.stream.plan import PACKING_VERSION
from mllm.stream.source import PlannedSource, Source
from mllm.stream.state import (
    Quarantine,
    Resumable,
    SegmentRecord,
    SourceRecord,
    StreamState,
    parse_windows,
)
from mllm.stream.takedown import Takedowns, read_takedowns
from tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class PackedStep:
    """The global rows of one step, before they are dealt to ranks."""

    order: OrderedRows
    num_images: np.ndarray  # int64 (G,)


class TokenStream(Resumable):
    """Packed rows of a mixture, as a pure function of (state, step).

    Args:
        sources: the mixture; names are unique.
        tokenizer: gives ids to text.
        seq_len: T, positions of a row.
        num_latents: L, slots of an image.
        global_batch_size: G, rows of a step over all ranks and micro-steps.
        seed: chooses the order of rows in each epoch, and the image seeds.
        image_size: S, pixels a side.
        resize: how a picture becomes square.
        unit: what the weights share out: "tokens" (slots and scored tokens) or "rows".
        index_dir: where the corpora's indexes lie, in one folder per source name; by default
            beside the shards.
        score_image_start: predicting `<image>` after scored text counts in the loss.
        excluded_steps: merged windows of stream steps that no training step reads.
        takedowns: samples that are left out.
        state: what a run has recorded; by default a new run with these sources and this seed.

    It pickles as these arguments: a loader worker opens its own files.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        tokenizer: Tokenizer,
        *,
        seq_len: int,
        num_latents: int,
        global_batch_size: int,
        seed: int,
        image_size: int,
        resize: Resize = "squash",
        unit: str = "tokens",
        index_dir: str | Path | None = None,
        score_image_start: bool = False,
        excluded_steps: Sequence[Window] = (),
        takedowns: Takedowns | None = None,
        state: StreamState | None = None,
    ) -> None:
        self._arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        self.source_names = [source.name for source in sources]
        if not sources or len(set(self.source_names)) < len(sources):
            raise UserError("data.mixture: needs at least one source, and each its own name")
        if unit not in ("tokens", "rows"):
            raise UserError(f"data.unit: {unit!r}; say tokens or rows")
        self.tokenizer = tokenizer
        self.seq_len, self.num_latents = seq_len, num_latents
        self.global_batch_size = global_batch_size
        self.takedowns = takedowns or Takedowns()
        self.sources = [
            PlannedSource(
                source,
                tokenizer,
                seq_len=seq_len,
                num_latents=num_latents,
                index_dir=Path(index_dir) if index_dir else None,
                score_image_start=score_image_start,
                takedowns=self.takedowns,
            )
            for source in sources
        ]
        num_pictures = sum(source.plan.total_images for source in self.sources)
        self._pictures = PixelCache(image_size, resize, num_pictures=num_pictures)
        fixed = {
            "tokenizer": tokenizer.fingerprint,
            "model.seq_len": seq_len,
            "model.num_latents": num_latents,
            "packing": PACKING_VERSION,
            "train.global_batch_size": global_batch_size,
            "data.score_image_start": score_image_start,
        }
        num_excluded = sum(len(source.excluded) for source in self.sources)
        self._settle(
            state
            or StreamState(
                fixed=fixed,
                segments=(self._segment(seed, unit),),
                excluded_steps=tuple(excluded_steps),
                quarantine=(Quarantine(0, self.takedowns.hash, num_excluded),),
            )
        )

    @classmethod
    def from_config(cls, config: Any) -> Self:
        """The stream that a training config describes (`mllm.config.load_config`)."""
        sources = [
            Source(entry.name, entry.path, entry.weight, entry.join_documents)
            for entry in config.data.mixture
        ]
        return cls(sources, **stream_settings(config))

    def __reduce__(self) -> tuple[Any, ...]:
        return _build, (type(self), self._arguments | {"state": self.state})

    def _settle(self, state: StreamState) -> None:
        self.state = state
        self._last_rows: tuple[int, PackedStep | None] = (-1, None)
        self.order = Order(
            [record.segment for record in state.segments],
            {source.name: source.plan.num_rows for source in self.sources},
            rows_per_step=self.global_batch_size,
            windows=state.excluded_steps,
        )

    def _segment(self, seed: int, unit: str) -> SegmentRecord:
        shares = []
        for source in self.sources:
            share = Fraction(str(source.source.weight))
            if unit == "tokens":
                share *= Fraction(source.plan.num_rows, max(1, source.counted_tokens))
            shares.append(share)
        records = (
            SourceRecord(
                name=source.name,
                path=str(source.source.corpus_dir),
                corpus=source.fingerprint,
                weight=str(source.source.weight),
                join_documents=str(float(source.source.join_documents)),
                rows_per_period=count,
            )
            for source, count in zip(self.sources, integer_shares(shares), strict=True)
        )
        return SegmentRecord(0, seed, unit, tuple(records))

    def unmatched_takedowns(self) -> list[str]:
        """Entries of the takedown lists of which no source has a sample."""
        return self.takedowns.unmatched([(s.corpus, s.excluded) for s in self.sources])

    # ---------------------------------------------------------------- rows of a step

    def rows(self, step: int) -> PackedStep:
        """The global rows of a step, in constant time for any step."""
        last_step, last = self._last_rows
        if step == last_step and last is not None:
            return last  # the micro-steps of a step ask one after the other
        order = self.order.rows(step)
        num_images = np.empty(self.global_batch_size, dtype=np.int64)
        for source_id, source in enumerate(self.sources):
            mine = order.source_ids == source_id
            num_images[mine] = source.plan.row_images[order.rows[mine]]
        rows = PackedStep(order, num_images)
        self._last_rows = (step, rows)
        return rows

    def spans(self, step: int, row: int) -> list[tuple[int, int]]:
        """Positions of the samples of a global row of a step, in the order of `RowInfo.samples`."""
        order = self.rows(step).order
        return self.sources[order.source_ids[row]].plan.spans(int(order.rows[row]))

    def row_infos(self, step: int, *, world_size: int, micro_batch_size: int) -> list[RowInfo]:
        """Every row of a step over all ranks and micro-steps, in global order."""
        split = {"world_size": world_size, "micro_batch_size": micro_batch_size}
        infos = [
            info
            for micro_step in range(self.grad_accum_steps(**split))
            for rank in range(world_size)
            for info in self.batch(step, micro_step, rank=rank, **split).rows
        ]
        return sorted(infos, key=lambda info: info.row)

    def grad_accum_steps(self, world_size: int, micro_batch_size: int) -> int:
        """Micro-steps of a step. UserError unless the sizes divide the global batch."""
        size, at_once = self.global_batch_size, world_size * micro_batch_size
        if size % at_once:
            lower, upper = size // at_once * at_once, (size // at_once + 1) * at_once
            nearest = " or ".join(str(n) for n in (lower, upper) if n)
            fitting = [n for n in range(1, size // world_size + 1) if size % (n * world_size) == 0]
            hint = f"set it to {nearest}"
            if fitting:
                best = min(fitting, key=lambda n: abs(n - micro_batch_size))
                hint += f", or train.micro_batch_size to {best}"
            raise UserError(
                f"train.global_batch_size {size} is no multiple of {world_size} ranks x "
                f"train.micro_batch_size {micro_batch_size}; {hint}"
            )
        return size // at_once

    # ---------------------------------------------------------------- batches

    def bytes_per_step(self, step: int, world_size: int) -> int:
        """Memory of one rank's batches of a step, about: five int64 and two bool a position."""
        positions = self.global_batch_size * self.seq_len
        pixels = int(self.rows(step).num_images.sum()) * 3 * self._pictures.size**2
        return (positions * (5 * 8 + 2) + pixels) // world_size

    def batch(
        self,
        step: int,
        micro_step: int = 0,
        *,
        rank: int,
        world_size: int,
        micro_batch_size: int,
    ) -> Batch:
        """The rows of one rank in one micro-step. Safe to call from any thread."""
        self.grad_accum_steps(world_size, micro_batch_size)
        rows = self.rows(step)
        order = rows.order
        cells = deal(rows.num_images, order.source_ids, micro_batch_size)
        mine = cells[micro_step * world_size + rank]
        draft = BatchDraft(len(mine), step=step, seq_len=self.seq_len, pictures=self._pictures)
        filled = []
        for b, row in enumerate(mine.tolist()):
            source = self.sources[order.source_ids[row]]
            content = draft.fill_row(
                b, source, int(order.rows[row]), int(order.epochs[row]), order.seeds[row]
            )
            filled.append((row, source.name, content))
        loss_mask = draft.loss_mask()
        return draft.finish(
            loss_mask,
            source_ids=order.source_ids[mine],
            # Shifted to fit int64.
            row_seeds=[hash_key("row", order.seed, step, row) >> 1 for row in mine.tolist()],
            rows=[
                RowInfo(
                    step=step,
                    rank=rank,
                    micro_step=micro_step,
                    row=row,
                    source=name,
                    samples=content.keys,
                    tokens=content.num_tokens,
                    scored_tokens=int(loss_mask[b].sum()),
                    images=content.num_images,
                )
                for b, (row, name, content) in enumerate(filled)
            ],
        )


def stream_settings(config: Any) -> dict[str, Any]:
    """What a training config says of a TokenStream, the sources aside."""
    return {
        "tokenizer": Tokenizer(config.tokenizer),
        "seq_len": config.model.seq_len,
        "num_latents": config.model.num_latents,
        "global_batch_size": config.train.global_batch_size,
        "seed": config.seed,
        "image_size": config.model.vision.image_size,
        "resize": config.data.resize,
        "unit": config.data.unit,
        "index_dir": config.data.index_dir,
        "score_image_start": config.data.score_image_start,
        "excluded_steps": parse_windows(config.data.exclude_steps),
        "takedowns": read_takedowns(config.data.exclude),
    }


def _build(kind: type[TokenStream], arguments: dict[str, Any]) -> TokenStream:
    return kind(**arguments)
