"""Largest differences of logits that must agree, in float32 with random weights.

Ours beside transformers' Kosmos-2 with weights carried in each direction, and ours beside itself
under other ways of computing the same. The tests assert the same on tiny sizes.
"""

from typing import Any, NamedTuple

import torch
from transformers import Kosmos2ForConditionalGeneration

from mllm.bench import _twins
from mllm.bench.machine import describe
from mllm.hf.configuration_mllm import MllmConfig
from mllm.hf.kosmos2 import (
    from_kosmos2_config,
    from_kosmos2_state,
    to_kosmos2_config,
    to_kosmos2_state,
)
from mllm.hf.modeling_mllm import MllmForConditionalGeneration
from mllm.model.attention import Documents
from mllm.model.config import ModelConfig
from mllm.model.init import build
from mllm.model.multimodal import MultimodalModel
from tokenizer.specials import NUM_SPECIALS, PAD_ID, SLOT_ID

LENGTH = 48
LIMIT = 1e-4


class Case(NamedTuple):
    """Rows of LENGTH positions, padding included, and what is in each."""

    pictures: list[int]  # of each row
    lengths: list[int]  # of each row
    side: str = "right"  # where padding stands

    @property
    def name(self) -> str:
        padding = f", padded {self.side}" if min(self.lengths) < LENGTH else ""
        return f"{len(self.lengths)} x {LENGTH}, pictures {self.pictures}{padding}"


CASES = (
    Case([0], [LENGTH]),
    Case([1], [LENGTH]),
    Case([2], [LENGTH]),
    Case([1, 2, 1], [LENGTH, 40, 17]),
    Case([1, 2, 1], [LENGTH, 40, 17], "left"),
)


def run() -> dict[str, Any]:
    torch.manual_seed(0)
    config = _twins.geometry()
    ours = build(config, seed=0).eval()
    exported = Kosmos2ForConditionalGeneration(to_kosmos2_config(config, PAD_ID)).eval()
    exported.load_state_dict(to_kosmos2_state(ours.state_dict()))
    origin = Kosmos2ForConditionalGeneration(to_kosmos2_config(config, PAD_ID)).eval()
    imported = build(from_kosmos2_config(origin.config), seed=1).eval()
    imported.load_state_dict(from_kosmos2_state(origin.state_dict()), strict=False)
    found = {}
    with torch.no_grad():
        for case in CASES:
            found[f"exported to Kosmos-2: {case.name}"] = beside(ours, exported, case)
            found[f"imported from Kosmos-2: {case.name}"] = beside(imported, origin, case)
        for position in ("sinusoidal", "xpos"):
            found |= other_ways(_twins.geometry(position=position))
    return {"machine": describe("torch", "transformers"), "limit": LIMIT, "differences": found}


def lines(result: dict[str, Any]) -> list[str]:
    worst = max(result["differences"].values())
    said = [f"{name}: {value:.1e}" for name, value in result["differences"].items()]
    return [*said, f"worst {worst:.1e} (target: under {LIMIT:.0e})"]


def beside(ours: MultimodalModel, theirs: Kosmos2ForConditionalGeneration, case: Case) -> float:
    """Largest difference of the logits at positions that are not padding."""
    config = ours.config
    ids = torch.full((len(case.lengths), LENGTH), PAD_ID)
    is_real = torch.zeros_like(ids, dtype=torch.bool)
    slots = torch.zeros_like(is_real)
    for row, (length, pictures) in enumerate(zip(case.lengths, case.pictures, strict=True)):
        first = LENGTH - length if case.side == "left" else 0
        is_real[row, first : first + length] = True
        for picture in range(pictures):
            start = first + 2 + picture * (config.num_latents + 3)
            slots[row, start : start + config.num_latents] = True
    draws = torch.randint(NUM_SPECIALS, config.vocab_size, ids.shape)
    ids = torch.where(is_real, draws, ids).masked_fill(slots, SLOT_ID)
    positions = (is_real.long().cumsum(1) - 1).clamp(min=0)
    side = config.vision.image_size
    pixels = torch.randn(sum(case.pictures), 3, side, side)
    mask = is_real[:, None, None] & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    latents = ours.encode_images(pixels) if len(pixels) else None
    hidden = ours.decoder(ours.embed(ids, slots, latents), positions, mask=mask)
    arguments = {"input_ids": ids, "attention_mask": is_real.long(), "use_cache": False}
    if len(pixels):
        other = theirs(
            **arguments, pixel_values=pixels, image_embeds_position_mask=slots.long()
        ).logits
    else:  # the class itself wants a picture
        other = theirs.text_model(**arguments).logits
    return float((ours.head(hidden) - other)[is_real].abs().max())


def other_ways(config: ModelConfig) -> dict[str, float]:
    """Packed beside alone, cached beside whole, a batch beside its rows."""
    model = MllmForConditionalGeneration(MllmConfig.from_model_config(config)).eval()
    modules, rows = model.model, 4
    ids = torch.randint(NUM_SPECIALS, config.vocab_size, (rows, LENGTH))
    whole = model(input_ids=ids).logits
    alone = torch.cat([model(input_ids=row[None]).logits for row in ids])
    packed = modules.head(
        modules.decoder(
            modules.embed(ids, ids < 0, None).flatten(0, 1)[None],
            torch.arange(LENGTH).repeat(rows)[None],
            documents=Documents(torch.arange(rows).repeat_interleave(LENGTH)[None]),
        )
    ).view_as(whole)
    output = model(input_ids=ids[:, : LENGTH // 2], use_cache=True)
    steps = [output.logits]
    for place in range(LENGTH // 2, LENGTH):
        step = ids[:, place : place + 1]
        output = model(input_ids=step, past_key_values=output.past_key_values, use_cache=True)
        steps.append(output.logits)
    ways = {"packed": packed, "one row at a time": alone, "cached": torch.cat(steps, 1)}
    return {
        f"{config.position}, {rows} x {LENGTH}: {name} beside whole": float(
            (way - whole).abs().max()
        )
        for name, way in ways.items()
    }
