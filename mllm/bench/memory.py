"""Peak memory of one training step at the paper's vocabulary, ours beside transformers' Kosmos-2.

Vocabulary 64,007, 4 rows of 2,048 positions, width 512; a process each. Kosmos-2 takes a loss over
all positions through its own `labels`.
"""

import json
import resource
import subprocess
import sys
from typing import Any

import torch

from mllm.bench import _twins
from mllm.bench.machine import describe
from mllm.model.attention import Documents

SIDES = ("ours", "kosmos-2")


def run() -> dict[str, Any]:
    sides = {}
    for side in SIDES:
        command = [sys.executable, "-m", "mllm.bench.memory", side]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        sides[side] = json.loads(done.stdout.splitlines()[-1])
    return {"machine": describe("torch", "transformers"), "dtype": str(_twins.dtype()), **sides}


def lines(result: dict[str, Any]) -> list[str]:
    ours, theirs = (result[side]["step_bytes"] for side in SIDES)
    said = [
        f"{side}: {result[side]['step_bytes'] / 2**30:.2f} GiB for a step, "
        f"{result[side]['peak_bytes'] / 2**30:.2f} GiB with weights and libraries"
        for side in SIDES
    ]
    return [*said, f"ours is {ours / theirs:.0%} (target: at most 50 %); {result['dtype']}"]


def measure(side: str) -> dict[str, int]:
    """One step in this process: the most that it held, in all and beyond the built model."""
    config = _twins.geometry(
        vocab_size=64007, seq_len=2048, model_dim=512, num_layers=2, num_heads=8, ffn_dim=2048
    )
    torch.manual_seed(0)
    token_ids = torch.randint(8, config.vocab_size, (4, 2048))
    slots = torch.zeros_like(token_ids, dtype=torch.bool)
    slots[:, 2 : 2 + config.num_latents] = True
    pixels = torch.ones(4, 3, 64, 64, dtype=_twins.dtype())
    positions = torch.arange(2048).expand(4, -1)
    if side == "ours":
        model = _twins.ours(config)
        before = peak_bytes()
        documents = Documents(torch.zeros_like(token_ids))
        hidden = model(token_ids, slots, pixels, positions, documents=documents)
        loss, _ = model.head(hidden[:, :-1].flatten(0, 1), token_ids[:, 1:].flatten())
    else:
        twin = _twins.theirs(config)
        before = peak_bytes()
        loss = twin(
            input_ids=token_ids,
            pixel_values=pixels,
            image_embeds_position_mask=slots.long(),
            labels=token_ids,
            use_cache=False,
        ).loss
    loss.backward()
    return {"peak_bytes": peak_bytes(), "step_bytes": peak_bytes() - before}


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
