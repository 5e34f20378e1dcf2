"""The token stream: the same rows on any number of ranks and micro-steps."""

import hashlib
from dataclasses import replace

from mllm.config import Config
from mllm.doctor.check import Check, measured
from mllm.stream.batch import Batch
from mllm.stream.stream import TokenStream

SPLITS = ((1, 1), (2, 2), (4, 2), (8, 1))  # world size, micro-batch
ROWS = 8  # of a step
STEPS = (0, 1, 40)


def check_stream(config: Config) -> Check:
    """Every row of a few steps, dealt in several ways; each world reads steps in another order."""
    config = replace(config, train=replace(config.train, global_batch_size=ROWS))
    expected: dict[tuple[int, int], str] = {}
    num_wrong = num_rows = 0
    for number, (world_size, micro_batch_size) in enumerate(SPLITS):
        stream = TokenStream.from_config(config)
        found: dict[tuple[int, int], str] = {}
        for step in sorted(STEPS, reverse=number % 2 == 1):
            for micro_step in range(stream.grad_accum_steps(world_size, micro_batch_size)):
                for rank in range(world_size):
                    batch = stream.batch(
                        step,
                        micro_step,
                        rank=rank,
                        world_size=world_size,
                        micro_batch_size=micro_batch_size,
                    )
                    found |= {(step, row): content for row, content in _contents(batch)}
        expected = expected or found
        places = [(step, row) for step in STEPS for row in range(ROWS)]
        num_wrong += sum(found.get(place) != expected.get(place) for place in places)
        num_rows += len(places)
    worlds = ", ".join(str(world_size) for world_size, _ in SPLITS)
    return measured(
        f"stream: the same rows on {worlds} ranks", num_wrong, 0, "rows differ", f"of {num_rows}"
    )


def _contents(batch: Batch) -> list[tuple[int, str]]:
    """Place in the global batch, and a digest of all that a row brings into training."""
    contents, picture = [], 0
    for b, info in enumerate(batch.rows):
        digest = hashlib.sha256(repr((info.source, info.samples)).encode())
        for field in ("token_ids", "target_ids", "loss_mask", "positions", "document_ids"):
            digest.update(getattr(batch, field)[b].numpy().tobytes())
        digest.update(batch.row_seeds[b].numpy().tobytes())
        after = picture + info.images
        digest.update(batch.pixels[picture:after].numpy().tobytes())
        digest.update(repr(batch.image_seeds[picture:after]).encode())
        picture = after
        contents.append((info.row, digest.hexdigest()))
    return contents
