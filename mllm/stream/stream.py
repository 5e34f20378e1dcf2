"""The token stream: step in, this rank's rows out. No position is kept anywhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from mllm.errors import UserError
from mllm.files import fingerprint
from mllm.images import Resize
from mllm.stream.batch import Batch, RowInfo
from mllm.stream.compose import BatchDraft
from mllm.stream.mixture import Mixture
from mllm.stream.permute import epoch_row, hash_key, mix
from mllm.stream.pixels import PixelCache
from mllm.stream.plan import PACKING_VERSION
from mllm.stream.source import PlannedSource, Source
from tokenizer.specials import BOI_ID
from tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class _Rows:
    """The global rows of one step, before they are dealt to ranks; arrays of (G,)."""

    source_ids: np.ndarray  # int64
    plan_rows: np.ndarray  # int64, row of that source's plan
    epochs: np.ndarray  # int64, of that source
    num_images: np.ndarray  # int64


class TokenStream:
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
    ) -> None:
        self._arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        self.source_names = [source.name for source in sources]
        if not sources or len(set(self.source_names)) < len(sources):
            raise UserError("data.mixture: needs at least one source, and each its own name")
        if unit not in ("tokens", "rows"):
            raise UserError(f"data.unit: {unit!r}; say tokens or rows")
        self.tokenizer = tokenizer
        self.seq_len, self.num_latents = seq_len, num_latents
        self.global_batch_size, self.seed = global_batch_size, seed
        self.unit = unit
        self._pictures = PixelCache(image_size, resize)
        self._sources = [
            PlannedSource(
                source,
                tokenizer,
                seq_len=seq_len,
                num_latents=num_latents,
                index_dir=Path(index_dir) if index_dir else None,
            )
            for source in sources
        ]
        self.mixture = Mixture([self._row_share(source) for source in self._sources])
        self._num_rows = np.array([source.plan.num_rows for source in self._sources])
        self._keys = np.array(
            [hash_key("order", seed, name) for name in self.source_names], dtype=np.uint64
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _build, (type(self), self._arguments)

    @classmethod
    def from_config(cls, config: Any) -> Self:
        """The stream that a training config describes (`mllm.config.load_config`)."""
        sources = [
            Source(entry.name, entry.path, entry.weight, entry.join_documents)
            for entry in config.data.mixture
        ]
        return cls(
            sources,
            Tokenizer(config.tokenizer),
            seq_len=config.model.seq_len,
            num_latents=config.model.num_latents,
            global_batch_size=config.train.global_batch_size,
            seed=config.seed,
            image_size=config.model.vision.image_size,
            resize=config.data.resize,
            unit=config.data.unit,
            index_dir=config.data.index_dir,
        )

    def _row_share(self, planned: PlannedSource) -> Fraction:
        weight = Fraction(str(planned.source.weight))
        if self.unit == "rows":
            return weight
        return weight * planned.plan.num_rows / max(1, planned.counted_tokens)

    # ---------------------------------------------------------------- identity

    @cached_property
    def fingerprint(self) -> str:
        """16 hex over all that decides the rows, the seed aside."""
        return fingerprint(
            {
                "mixture": self._mixture_fingerprint,
                "tokenizer": self.tokenizer.fingerprint,
                "seq_len": self.seq_len,
                "num_latents": self.num_latents,
                "packing": PACKING_VERSION,
                "global_batch_size": self.global_batch_size,
            }
        )

    @cached_property
    def _mixture_fingerprint(self) -> str:
        entries = [
            [s.name, s.corpus.fingerprint, str(s.source.weight), str(s.source.join_documents)]
            for s in self._sources
        ]
        return fingerprint([self.unit, entries])

    @property
    def state(self) -> dict[str, Any]:
        """What `stream.json` holds: with it and a step, every batch is determined."""
        return {
            "fingerprint": self.fingerprint,
            "segments": [
                {"first_step": 0, "mixture": self._mixture_fingerprint, "seed": self.seed}
            ],
            "excluded_steps": [],
            "quarantine": fingerprint([]),
        }

    def describe(self) -> dict[str, Any]:
        """What was planned: rows, padding, cuts and drops by source, and the realised shares."""
        row_shares = self.mixture.shares
        tokens_per_row = np.array([s.counted_tokens / s.plan.num_rows for s in self._sources])
        padding = np.array(
            [s.plan.num_padding / (s.plan.num_rows * self.seq_len) for s in self._sources]
        )
        token_shares = row_shares * tokens_per_row
        token_shares /= max(1e-9, token_shares.sum())
        sources = {
            s.name: {
                "samples": len(s.corpus),
                "dropped": s.lengths.num_dropped,
                "cuts": s.plan.num_cuts,
                "rows_per_epoch": s.plan.num_rows,
                "joined_rows": s.plan.num_joined,
                "images_per_epoch": s.plan.total_images,
                "padding": padding[i],
                "tokens_per_row": tokens_per_row[i],
                "row_share": row_shares[i],
                "token_share": token_shares[i],
            }
            for i, s in enumerate(self._sources)
        }
        return {
            "fingerprint": self.fingerprint,
            "padding": float(row_shares @ padding),
            "period": self.mixture.period,
            "sources": {
                name: {key: _plain(value) for key, value in entry.items()}
                for name, entry in sources.items()
            },
        }

    # ---------------------------------------------------------------- rows of a step

    def rows(self, step: int) -> _Rows:
        """The global rows of a step, in constant time for any step."""
        size = self.global_batch_size
        source_ids, numbers = self.mixture.rows(step * size, size)
        num_rows = self._num_rows[source_ids]
        epochs, positions = np.divmod(numbers, num_rows)
        keys = mix(self._keys[source_ids] ^ mix(epochs.astype(np.uint64)))
        plan_rows = epoch_row(positions, num_rows, keys)
        num_images = np.empty(size, dtype=np.int64)
        for source_id, source in enumerate(self._sources):
            mine = source_ids == source_id
            num_images[mine] = source.plan.row_images[plan_rows[mine]]
        return _Rows(source_ids, plan_rows, epochs, num_images)

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
        cells = deal(rows.num_images, rows.source_ids, micro_batch_size)
        mine = cells[micro_step * world_size + rank]
        draft = BatchDraft(
            len(mine),
            step=step,
            seed=self.seed,
            seq_len=self.seq_len,
            pictures=self._pictures,
        )
        infos = []
        for b, row in enumerate(mine.tolist()):
            source = self._sources[rows.source_ids[row]]
            keys = draft.fill_row(b, source, int(rows.plan_rows[row]), int(rows.epochs[row]))
            infos.append((row, source.name, keys))
        return draft.finish(
            source_ids=rows.source_ids[mine],
            rows=[
                RowInfo(
                    step=step,
                    rank=rank,
                    micro_step=micro_step,
                    row=row,
                    source=name,
                    samples=keys,
                    tokens=int((draft.document_ids[b] >= 0).sum()),
                    scored_tokens=int(draft.loss_mask()[b].sum()),
                    images=int((draft.token_ids[b] == BOI_ID).sum()),
                )
                for b, (row, name, keys) in enumerate(infos)
            ],
        )


def deal(num_images: np.ndarray, source_ids: np.ndarray, micro_batch_size: int) -> np.ndarray:
    """Deals the global rows of a step to cells (rank x micro-step) of `micro_batch_size` rows.

    Rows are dealt in rounds, most images first; in each round the cell with the fewest images so
    far takes the row with the most. So no two cells differ by more images than two rows may.
    Rows with equally many images go round by source, so that cells are alike in that too.

    Returns:
        int64 (cells, micro_batch_size), row numbers in order within each cell.
    """
    num_cells = len(num_images) // micro_batch_size
    order = np.lexsort((source_ids, -num_images))
    loads = np.zeros(num_cells, dtype=np.int64)
    cells = np.empty((num_cells, micro_batch_size), dtype=np.int64)
    for number in range(micro_batch_size):
        dealt = order[number * num_cells : (number + 1) * num_cells]
        takers = np.argsort(loads, kind="stable")
        cells[takers, number] = dealt
        loads[takers] += num_images[dealt]
    return np.sort(cells, axis=1)


def _build(kind: type[TokenStream], arguments: dict[str, Any]) -> TokenStream:
    return kind(**arguments)


def _plain(value: Any) -> int | float:
    return value if isinstance(value, int) else round(float(value), 6)
