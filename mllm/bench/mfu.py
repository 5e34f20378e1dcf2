"""Model FLOPs utilisation of a training step, and its time beside its products of matrices alone.

The peak is that of a product of two square matrices, in the same rounds.
"""

from collections.abc import Callable
from typing import Any

import torch

from mllm.bench import _twins
from mllm.bench.machine import describe, interleaved
from mllm.model.attention import Documents
from mllm.model.flops import step_flops

ROUNDS = 3
ROWS, DOCUMENT = 2, 256  # documents of one length fill the rows
PEAK_SIDE = 2048


def run() -> dict[str, Any]:
    config = _twins.geometry(
        model_dim=512, num_layers=8, num_heads=8, ffn_dim=2048, vocab_size=8192
    )
    model = _twins.ours(config)
    shape = (ROWS, config.seq_len)
    token_ids = torch.randint(8, config.vocab_size, shape)
    document_ids = (torch.arange(config.seq_len) // DOCUMENT).expand(shape)
    positions = (torch.arange(config.seq_len) % DOCUMENT).expand(shape)
    num_documents = token_ids.numel() // DOCUMENT
    flops = step_flops(config, [DOCUMENT] * num_documents, 0, token_ids.numel(), 0)
    total = float(sum(flops.values()))

    def step() -> float:
        embeddings = model.embed(token_ids, torch.zeros_like(token_ids, dtype=torch.bool), None)
        hidden = model.decoder(embeddings, positions, documents=Documents(document_ids))
        loss, _ = model.head(hidden.flatten(0, 1), token_ids.flatten())
        (loss / token_ids.numel()).backward()
        model.zero_grad()
        return total

    dim, head_dim, count = config.model_dim, config.head_dim, token_ids.numel()
    layer = [(count, dim, dim)] * 4 + [(count, dim, config.ffn_dim), (count, config.ffn_dim, dim)]
    products = layer * config.num_layers + [(count, dim, config.vocab_size)]
    alone = products_alone(products, num_documents * config.num_heads, head_dim, config.num_layers)
    square = torch.randn(PEAK_SIDE, PEAK_SIDE, dtype=_twins.dtype())

    def peak() -> float:
        torch.mm(square, square)
        return 2.0 * PEAK_SIDE**3

    def only_products() -> float:
        alone()
        return total

    sides = {"step": step, "products alone": only_products, "peak": peak}
    for work in sides.values():
        work()
    return {
        "machine": describe("torch"),
        "threads": torch.get_num_threads(),
        "dtype": str(_twins.dtype()),
        "flops": flops,
        "rates": interleaved(sides, ROUNDS),
    }


def lines(result: dict[str, Any]) -> list[str]:
    step, alone, peak = (
        result["rates"][name]["median"] for name in ("step", "products alone", "peak")
    )
    return [
        f"{step / 1e9:.0f} GFLOP/s, {step / peak:.0%} of {peak / 1e9:.0f} (target 55 %)",
        f"{step / alone:.0%} of the speed of its products alone (target 85 %); {result['dtype']}, "
        f"{result['threads']} threads",
    ]


def products_alone(
    products: list[tuple[int, int, int]], num_heads: int, head_dim: int, num_layers: int
) -> Callable[[], None]:
    """Each linear's product and its two gradients, and attention's, which torch's kernel fuses.

    Args:
        products: (rows, in, out) of each linear.
        num_heads: of all documents together.
    """

    def made(*size: int) -> torch.Tensor:
        return torch.randn(size, dtype=_twins.dtype())

    operands = {
        size: (made(size[0], size[1]), made(size[2], size[1]), made(size[0], size[2]))
        for size in set(products)
    }
    query, scores = made(num_heads, DOCUMENT, head_dim), made(num_heads, DOCUMENT, DOCUMENT)

    def work() -> None:
        for size in products:
            x, weight, gradient = operands[size]
            x @ weight.T
            gradient @ weight
            gradient.T @ x
        for _ in range(3 * num_layers):
            query @ query.transpose(1, 2)
            scores @ query

    return work
