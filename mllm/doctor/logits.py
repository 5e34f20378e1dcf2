"""Logits that must agree: of documents in a row, of cached decoding, of batches, of an export.

Letters: B rows, T positions, V vocabulary, I pictures, S pixels a side.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F

from mllm.doctor.check import Check, failed, measured
from mllm.hf.modeling_mllm import MllmForConditionalGeneration
from mllm.hf.processing_mllm import MllmProcessor, PromptSegment
from mllm.images import normalise
from mllm.model.attention import Documents
from mllm.model.multimodal import MultimodalModel
from mllm.stream.batch import Batch
from tokenizer.specials import NUM_SPECIALS

# Of the largest logit, in fp32: sums in another order. Whoever sees a wrong key is far beyond.
LOGITS_LIMIT = 1e-4
EXPORT_LIMIT = 1e-4  # nats

Prompt = list[PromptSegment]


# ------------------------------------------------------------------------------ documents in a row
@torch.no_grad()
def check_isolation(name: str, model: MultimodalModel, batch: Batch) -> Check:
    """Changes the first, a middle and the last document of each row; the others must not notice.

    Args:
        batch: packed rows, on the model's device.
    """
    unit, limit = "largest change in another document's logits", 0.0
    num_documents = batch.document_ids.max(1).values + 1  # (B,)
    if int(num_documents.max()) < 2:
        return failed(name, "no row has two documents")
    before = _packed_logits(model, batch)
    seen = 0.0
    for chosen in (torch.zeros_like(num_documents), num_documents // 2, num_documents - 1):
        is_changed = batch.document_ids == chosen[:, None]  # (B, T)
        change = (_packed_logits(model, _perturb(model, batch, is_changed)) - before).abs()
        if not change[is_changed].max() > 0:
            return failed(name, "a document's own logits did not follow its text and pictures")
        others = change[~is_changed & (batch.document_ids >= 0)]
        seen = max(seen, float(others.nan_to_num(torch.inf).max())) if len(others) else seen
    return measured(name, seen, limit, unit, f"{int(num_documents.sum())} documents")


def _perturb(model: MultimodalModel, batch: Batch, is_changed: torch.Tensor) -> Batch:
    """Every word and every picture of the positions `is_changed`, bool (B, T), is another one."""
    is_word = is_changed & (batch.token_ids >= NUM_SPECIALS)
    num_words = model.config.vocab_size - NUM_SPECIALS
    shifted = NUM_SPECIALS + (batch.token_ids - NUM_SPECIALS + 1) % num_words
    pixels = batch.pixels
    if batch.num_images:
        of_picture = is_changed[batch.slot_mask].view(batch.num_images, -1)[:, 0]  # (I,)
        pixels = torch.where(of_picture[:, None, None, None], 255 - pixels, pixels)
    return replace(batch, token_ids=torch.where(is_word, shifted, batch.token_ids), pixels=pixels)


def _packed_logits(model: MultimodalModel, batch: Batch) -> torch.Tensor:
    """(B, T, V), as training computes packed rows."""
    hidden = model(
        batch.token_ids,
        batch.slot_mask,
        normalise(batch.pixels),
        batch.positions,
        num_images=batch.num_images,
        documents=Documents(batch.document_ids),
    )
    return model.head(hidden)


# ---------------------------------------------------------------------------------------- decoding
@torch.no_grad()
def check_cache(
    name: str, model: MllmForConditionalGeneration, processor: MllmProcessor, prompt: Prompt
) -> Check:
    """One token at a time on the cache, beside one forward pass over everything.

    Args:
        prompt: has words after its last picture.
    """
    inputs = processor.from_segments([prompt]).to(model.device)
    ids, slots = inputs["input_ids"], inputs["image_slot_mask"][0]
    whole = model(**inputs, use_cache=False).logits[0]  # (T, V)
    start = int(slots.nonzero().max()) + 2 if slots.any() else 1
    pictures = {"pixel_values": inputs.get("pixel_values")}
    output = model(input_ids=ids[:, :start], **pictures, use_cache=True)
    parts = [output.logits[0]]
    for place in range(start, ids.shape[1]):
        output = model(input_ids=ids[:, place : place + 1], past_key_values=output.past_key_values)
        parts.append(output.logits[0])
    return _same_logits(name, torch.cat(parts), whole, f"{ids.shape[1] - start} tokens")


@torch.no_grad()
def check_batches(
    name: str, model: MllmForConditionalGeneration, processor: MllmProcessor, prompts: list[Prompt]
) -> Check:
    """Rows of several lengths, padded on either side, beside each row alone."""
    alone = [model(**processor.from_segments([row]).to(model.device)).logits[0] for row in prompts]
    together = []
    for side in ("left", "right"):
        inputs = processor.from_segments(prompts, padding_side=side).to(model.device)
        logits = model(**inputs).logits
        masks = inputs["attention_mask"].bool()
        together += [row[mask] for row, mask in zip(logits, masks, strict=True)]
    return _same_logits(
        name, torch.cat(together), torch.cat([*alone, *alone]), f"batch of {len(prompts)}"
    )


def _same_logits(name: str, found: torch.Tensor, expected: torch.Tensor, note: str) -> Check:
    difference = float((found - expected).abs().max() / expected.abs().max())
    return measured(name, difference, LOGITS_LIMIT, "of the largest logit", note)


# ------------------------------------------------------------------------------------------ export
@torch.no_grad()
def check_export(
    name: str, engine_losses: torch.Tensor, model: MllmForConditionalGeneration, batch: Batch
) -> Check:
    """What the training engine said of packed rows, beside the export on each document alone.

    Args:
        engine_losses: float32 nats of each scored position of `batch`, row by row.
        batch: on the model's device.
    """
    num_slots = batch.slot_mask.sum(1).tolist()
    per_picture = model.config.num_latents
    losses, first_picture = [], 0
    for row, document_ids in enumerate(batch.document_ids):
        picture = first_picture
        for number in range(int(document_ids.max()) + 1):
            span = document_ids == number  # (T,)
            num_pictures = int(batch.slot_mask[row, span].sum()) // per_picture
            pixels = normalise(batch.pixels[picture : picture + num_pictures])
            picture += num_pictures
            logits = model(
                input_ids=batch.token_ids[row, span][None],
                pixel_values=pixels if num_pictures else None,
            ).logits[0]
            is_scored = batch.loss_mask[row, span]
            targets = batch.target_ids[row, span][is_scored]
            losses.append(F.cross_entropy(logits[is_scored].float(), targets, reduction="none"))
        first_picture += num_slots[row] // per_picture
    found = torch.cat(losses).cpu()
    if found.shape != engine_losses.shape:
        return failed(name, f"{len(found)} scored positions, the engine has {len(engine_losses)}")
    difference = float((found - engine_losses).abs().max())
    unit = "nats, largest of a token"
    return measured(name, difference, EXPORT_LIMIT, unit, f"{len(found)} tokens")
