"""Useful positions/s of a training step: packed rows beside transformers' Kosmos-2, padded.

Same documents, sizes, dtype, threads and optimizer, nothing compiled; `attn_implementation="sdpa"`.
Kosmos-2 gets the documents as they come, eight a batch, and again sorted by length into batches of
about as many positions as ours. A step goes over all documents, batch by batch.
"""

from collections.abc import Callable
from typing import Any

import torch

from mllm.bench import _twins
from mllm.bench._twins import Document
from mllm.bench.machine import describe, interleaved
from mllm.model.attention import Documents
from mllm.model.config import ModelConfig

NUM_DOCUMENTS = 96
DOCUMENTS_PER_BATCH = 8  # of Kosmos-2 as they come; a batch has about as many positions as ours
ROWS_PER_BATCH = 4
ROUNDS = 3


def run() -> dict[str, Any]:
    config = _twins.geometry()
    corpus = _twins.documents(NUM_DOCUMENTS, config)
    useful = sum(len(d.token_ids) for d in corpus)
    padded, bucketed = as_they_come(corpus), by_length(corpus, ROWS_PER_BATCH * config.seq_len)
    rows = pack(corpus, config.seq_len)
    sides = {
        "ours, packed": packed_steps(config, rows),
        "kosmos-2, padded": padded_steps(config, padded),
        "kosmos-2, bucketed": padded_steps(config, bucketed),
    }
    for work in sides.values():  # the optimizers' states and the allocator's pools
        work()

    def rate(work: Callable[[], None]) -> Callable[[], float]:
        def once() -> float:
            work()
            return useful

        return once

    rates = interleaved({name: rate(work) for name, work in sides.items()}, ROUNDS)
    padding = {
        "ours, packed": 1 - useful / (len(rows) * config.seq_len),
        "kosmos-2, padded": 1 - useful / padded_positions(padded),
        "kosmos-2, bucketed": 1 - useful / padded_positions(bucketed),
    }
    return {
        "machine": describe("torch", "transformers"),
        "threads": torch.get_num_threads(),
        "dtype": str(_twins.dtype()),
        "documents": NUM_DOCUMENTS,
        "useful_positions": useful,
        "rates": rates,
        "padding": padding,
    }


def lines(result: dict[str, Any]) -> list[str]:
    median = {name: side["median"] for name, side in result["rates"].items()}
    ours = median["ours, packed"]
    said = [
        f"{name}: {rate:,.0f} useful positions/s, {result['padding'][name]:.0%} padding"
        + ("" if name.startswith("ours") else f"; ours is {ours / rate:.2f}x")
        for name, rate in median.items()
    ]
    return [*said, f"{result['dtype']}, {result['threads']} threads; targets 2x and 1.3x"]


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


def packed_steps(config: ModelConfig, rows: list[list[Document]]) -> Callable[[], None]:
    """A step over all rows."""
    model = _twins.ours(config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    batches = []
    for start in range(0, len(rows), ROWS_PER_BATCH):
        part = rows[start : start + ROWS_PER_BATCH]
        token_ids = torch.zeros(len(part), config.seq_len, dtype=torch.int64)
        positions = torch.zeros_like(token_ids)
        document_ids = torch.full_like(token_ids, -1)
        slot_mask = torch.zeros_like(token_ids, dtype=torch.bool)
        scored = torch.zeros_like(slot_mask)
        for i, row in enumerate(part):
            first = 0
            for number, document in enumerate(row):
                length = len(document.token_ids)
                span = slice(first, first + length)
                token_ids[i, span] = document.token_ids
                positions[i, span] = torch.arange(length)
                document_ids[i, span] = number
                scored[i, first : first + length - 1] = True
                if document.has_picture:
                    slot_mask[i, first + 2 : first + 2 + config.num_latents] = True
                first += length
        pictures = int(slot_mask.sum()) // config.num_latents
        batches.append((token_ids, positions, document_ids, slot_mask, scored, pictures))

    def work() -> None:
        for token_ids, positions, document_ids, slot_mask, scored, pictures in batches:
            hidden = model(
                token_ids,
                slot_mask,
                _pixels(config, max(1, pictures)),
                positions,
                num_images=pictures,
                documents=Documents(document_ids),
            )
            loss, _ = model.head(hidden[scored], token_ids.roll(-1, 1)[scored])
            (loss / int(scored.sum())).backward()
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
        for i, document in enumerate(part):
            length = len(document.token_ids)
            token_ids[i, :length] = document.token_ids
            mask[i, :length] = 1
            if document.has_picture:
                slots[i, 2 : 2 + config.num_latents] = 1
        labels = token_ids.masked_fill(mask == 0, -100)
        pictures = sum(d.has_picture for d in part)
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


def as_they_come(corpus: list[Document]) -> list[list[Document]]:
    size = DOCUMENTS_PER_BATCH
    return [corpus[start : start + size] for start in range(0, len(corpus), size)]


def by_length(corpus: list[Document], positions: int) -> list[list[Document]]:
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
