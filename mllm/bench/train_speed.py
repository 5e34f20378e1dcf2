"""Useful positions/s of a training step: packed rows beside transformers' Kosmos-2, padded.

Same documents, sizes, dtype, threads and optimizer, nothing compiled; `attn_implementation="sdpa"`.
The documents are those of the demo's mixture where it is built (`make demo`), else drawn with
lengths like its. Kosmos-2 gets them as they come, eight a batch; by length, eight a batch, as
`transformers`' Trainer groups them; and, harder to beat, by length in batches of about as
many positions as ours. A step goes over all documents, batch by batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from mllm.bench import _twins
from mllm.bench._twins import Document
from mllm.bench.machine import describe, interleaved
from mllm.model.attention import Documents
from mllm.model.config import ModelConfig

NUM_STEPS = 3  # of the demo's mixture
NUM_DOCUMENTS = 96  # drawn, without it
DOCUMENTS_PER_BATCH = 8
ROWS_PER_BATCH = 4
ROUNDS = 3


def run() -> dict[str, Any]:
    config = _twins.geometry()
    found = _twins.demo_batches(NUM_STEPS)
    if found is None:
        rows = pack(_twins.documents(NUM_DOCUMENTS, config), config.seq_len)
        batches = packed_batches(config, rows)
        corpus = [document for row in rows for document in row]
        np.random.default_rng(0).shuffle(corpus)  # type: ignore[arg-type]
    else:
        batches = [
            PackedBatch(b.token_ids, b.positions, b.document_ids, b.slot_mask, b.loss_mask)
            for b in found
        ]
        corpus = _twins.documents_of(found)
    useful = sum(len(d.token_ids) for d in corpus)
    padded = {
        "kosmos-2, padded": by_number(corpus),
        "kosmos-2, bucketed by eight": by_number(sorted(corpus, key=lambda d: len(d.token_ids))),
        "kosmos-2, bucketed by positions": by_positions(corpus, ROWS_PER_BATCH * config.seq_len),
    }
    sides = {
        "ours, packed": packed_steps(config, batches),
        **{name: padded_steps(config, parts) for name, parts in padded.items()},
    }
    for work in sides.values():  # the optimizers' states and the allocator's pools
        work()

    def rate(work: Callable[[], None]) -> Callable[[], float]:
        def once() -> float:
            work()
            return useful

        return once

    rates = interleaved({name: rate(work) for name, work in sides.items()}, ROUNDS)
    padding_shares = {
        "ours, packed": 1 - useful / sum(b.token_ids.numel() for b in batches),
        **{name: 1 - useful / padded_positions(parts) for name, parts in padded.items()},
    }
    return {
        "machine": describe("torch", "transformers"),
        "threads": torch.get_num_threads(),
        "dtype": str(_twins.dtype()),
        "mixture": "drawn" if found is None else "demo",
        "documents": len(corpus),
        "pictures": sum(bool(d.slot_mask.any()) for d in corpus),
        "useful_positions": useful,
        "rates": rates,
        "padding": padding_shares,
    }


def lines(result: dict[str, Any]) -> list[str]:
    median = {name: side["median"] for name, side in result["rates"].items()}
    ours = median["ours, packed"]
    said = [
        f"{name}: {rate:,.0f} useful positions/s, {result['padding'][name]:.0%} padding"
        + ("" if name.startswith("ours") else f"; ours is {ours / rate:.2f}x")
        for name, rate in median.items()
    ]
    return [
        *said,
        f"{result['mixture']} mixture, {result['documents']} documents, {result['pictures']} with "
        f"pictures; {result['dtype']}, {result['threads']} threads; targets 2x and 1.3x",
    ]


def pack(corpus: list[Document], seq_len: int) -> list[list[Document]]:
    """First fit, longest first."""
    rows: list[list[Document]] = []
    room: list[int] = []
    for document in sorted(corpus, key=lambda d: -len(d.token_ids)):
        length = len(document.token_ids)
        place = next((i for i, left in enumerate(room) if left >= length), None)
        if place is None:
            place = len(rows)
            rows.append([])
            room.append(seq_len)
        rows[place].append(document)
        room[place] -= length
    return rows


class PackedBatch(NamedTuple):
    """(B, T) each, as in `mllm.stream.batch.Batch`."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    document_ids: torch.Tensor
    slot_mask: torch.Tensor
    loss_mask: torch.Tensor


def packed_batches(config: ModelConfig, rows: list[list[Document]]) -> list[PackedBatch]:
    batches = []
    for start in range(0, len(rows), ROWS_PER_BATCH):
        part = rows[start : start + ROWS_PER_BATCH]
        token_ids = torch.zeros(len(part), config.seq_len, dtype=torch.int64)
        document_ids = torch.full_like(token_ids, -1)
        batch = PackedBatch(
            token_ids,
            torch.zeros_like(token_ids),
            document_ids,
            torch.zeros_like(token_ids, dtype=torch.bool),
            torch.zeros_like(token_ids, dtype=torch.bool),
        )
        for i, row in enumerate(part):
            first = 0
            for number, document in enumerate(row):
                span = slice(first, first + len(document.token_ids))
                batch.token_ids[i, span] = document.token_ids
                batch.positions[i, span] = torch.arange(len(document.token_ids))
                batch.document_ids[i, span] = number
                batch.slot_mask[i, span] = document.slot_mask
                batch.loss_mask[i, span] = document.loss_mask
                first = span.stop
        batches.append(batch)
    return batches


def packed_steps(config: ModelConfig, batches: list[PackedBatch]) -> Callable[[], None]:
    """A step over all rows."""
    model = _twins.ours(config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def work() -> None:
        for token_ids, positions, document_ids, slot_mask, scored in batches:
            pictures = int(slot_mask.sum()) // config.num_latents
            kept = scored.flatten().nonzero().flatten()
            hidden = model(
                token_ids,
                slot_mask,
                _pixels(config, max(1, pictures)),
                positions,
                num_images=pictures,
                documents=Documents(document_ids),
                kept=kept,
            )
            loss, _ = model.head(hidden, token_ids.roll(-1, 1).flatten()[kept])
            (loss / len(kept)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return work


def padded_steps(config: ModelConfig, parts: list[list[Document]]) -> Callable[[], None]:
    """The same of Kosmos-2: a document a row, padded on the right to the longest of its batch."""
    model = _twins.theirs(config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    batches = []
    for part in parts:
        longest = max(len(d.token_ids) for d in part)
        token_ids = torch.ones(len(part), longest, dtype=torch.int64)  # 1: its padding id
        mask = torch.zeros_like(token_ids)
        slots = torch.zeros_like(token_ids)
        labels = torch.full_like(token_ids, -100)
        for i, document in enumerate(part):
            length = len(document.token_ids)
            token_ids[i, :length] = document.token_ids
            mask[i, :length] = 1
            slots[i, :length] = document.slot_mask.long()
            labels[i, 1:length][document.loss_mask[:-1]] = document.token_ids[1:][
                document.loss_mask[:-1]
            ]
        pictures = int(slots.sum()) // config.num_latents
        batches.append((token_ids, mask, slots, labels, pictures))

    def work() -> None:
        for token_ids, mask, slots, labels, pictures in batches:
            arguments = {"input_ids": token_ids, "attention_mask": mask, "use_cache": False}
            if pictures:
                loss = model(
                    **arguments,
                    pixel_values=_pixels(config, pictures),
                    image_embeds_position_mask=slots,
                    labels=labels,
                ).loss
            else:  # the class itself refuses a batch without a picture
                loss = model.text_model(**arguments, labels=labels).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return work


def by_number(corpus: list[Document]) -> list[list[Document]]:
    size = DOCUMENTS_PER_BATCH
    return [corpus[start : start + size] for start in range(0, len(corpus), size)]


def by_positions(corpus: list[Document], positions: int) -> list[list[Document]]:
    """Batches of neighbours in length, of at most so many positions with their padding."""
    parts: list[list[Document]] = [[]]
    for document in sorted(corpus, key=lambda d: len(d.token_ids)):
        if len(document.token_ids) * (len(parts[-1]) + 1) > positions:
            parts.append([])
        parts[-1].append(document)
    return parts


def padded_positions(parts: list[list[Document]]) -> int:
    return sum(len(part) * max(len(d.token_ids) for d in part) for part in parts)


def _pixels(config: ModelConfig, num: int) -> torch.Tensor:
    side = config.vision.image_size
    return torch.ones(num, 3, side, side, dtype=_twins.dtype())
