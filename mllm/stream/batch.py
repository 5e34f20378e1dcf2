"""What the stream hands to the trainer: every field with dtype and shape.

Letters: B rows, T positions (`seq_len`), I images, S pixels a side.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch


@dataclass(frozen=True)
class RowInfo:
    """Where one row of a batch comes from; `mllm stream show` prints these."""

    step: int
    rank: int
    micro_step: int
    row: int  # place in the global batch, 0 .. global_batch_size - 1, whatever the world size
    source: str
    samples: list[str]  # keys, in the order in which they stand in the row
    tokens: int  # positions that are not padding, image slots included
    scored_tokens: int
    images: int


@dataclass(frozen=True)
class Batch:
    """The rows of one rank in one micro-step."""

    token_ids: torch.Tensor  # int64 (B, T); SLOT_ID at image slots, PAD_ID at padding
    target_ids: torch.Tensor  # int64 (B, T); already shifted: the next token of the same document
    loss_mask: torch.Tensor  # bool (B, T); True where predicting target_ids[b, t] is scored
    positions: torch.Tensor  # int64 (B, T); from 0 in each document; through a joined row
    document_ids: torch.Tensor  # int64 (B, T); 0, 1, 2 .. in each row, -1 at padding
    slot_mask: torch.Tensor  # bool (B, T); True where a latent goes, row-major in image order
    pixels: torch.Tensor  # uint8 (I, 3, S, S); row-major; one zero image if there is none
    num_images: int  # real images: I, or 0 when `pixels` is the dummy
    source_ids: torch.Tensor  # int64 (B,); index into `TokenStream.source_names`
    row_seeds: torch.Tensor  # int64 (B,); from (seed, step, row), for dropout
    image_seeds: list[int]  # one per real image, from (seed, sample key, epoch, image)
    rows: list[RowInfo]
    bad_samples: list[dict[str, Any]] = field(default_factory=list)  # masked here: ledger lines
    num_excluded: int = 0  # pieces of samples that takedown lists leave out

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with its tensors on `device`."""
        tensors: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor)
        }
        return replace(self, **tensors)
