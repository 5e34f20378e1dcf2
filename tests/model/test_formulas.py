"""The xPos decoder against one written from the papers' formulas, position by position: sub-LN
(Magneto, arXiv 2210.06423, eq. 1-5), xPos (arXiv 2212.10554, eq. 6-10, with torchscale's scale base
of 512), scaled and tied embeddings. In float64, and nothing in it is shared with `mllm.model`.
"""

import math
from itertools import pairwise

import pytest
import torch

from mllm.model.attention import Documents
from mllm.model.init import build
from mllm.model.multimodal import MultimodalModel
from tests.model.test_decoder import packed_row, tiny

FAULTS = ["no decay", "half-split pairs", "no second norm", "norms swapped", "unscaled embeddings"]


class PlainDecoder:
    """Logits of one document; `fault` plants an error."""

    def __init__(self, model: MultimodalModel, fault: str | None = None):
        self.weights = {name: w.detach().double() for name, w in model.decoder.named_parameters()}
        self.num_layers, self.num_heads = model.config.num_layers, model.config.num_heads
        self.fault = fault

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self.weights[f"{name}.weight"] @ x + self.weights[f"{name}.bias"]

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean()
        scaled = centred / ((centred**2).mean() + 1e-5).sqrt()
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def turned(self, head: torch.Tensor, n: int, sign: int) -> torch.Tensor:
        """(x cos(n theta) + rot(x) sin(n theta)) zeta^(sign n / 512), one pair after another."""
        size = len(head)
        out = torch.empty_like(head)
        for i in range(size // 2):
            theta = 10000 ** (-2 * i / size)
            zeta = 1.0 if self.fault == "no decay" else (2 * i / size + 0.4) / 1.4
            places = [i, i + size // 2] if self.fault == "half-split pairs" else [2 * i, 2 * i + 1]
            a, b = (head[place] for place in places)
            cos, sin, scale = math.cos(n * theta), math.sin(n * theta), zeta ** (sign * n / 512)
            out[places[0]], out[places[1]] = (
                (a * cos - b * sin) * scale,
                (b * cos + a * sin) * scale,
            )
        return out

    def attended(self, name: str, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """For each position the heads' outputs, side by side."""
        heads = {}
        for kind, sign in (("q", 1), ("k", -1), ("v", 0)):
            for n, x in enumerate(inputs):
                parts = self.linear(f"{name}.{kind}_proj", x).chunk(self.num_heads)
                heads[kind, n] = [self.turned(part, n, sign) if sign else part for part in parts]
        outputs = []
        for n in range(len(inputs)):
            by_head = []
            for head in range(self.num_heads):
                query = heads["q", n][head]
                scores = [float(query @ heads["k", m][head]) for m in range(n + 1)]
                shares = [math.exp(score / math.sqrt(len(query))) for score in scores]
                values = [share * heads["v", m][head] for m, share in enumerate(shares)]
                by_head.append(sum(values) / sum(shares))  # type: ignore[arg-type]
            outputs.append(torch.cat(by_head))
        return outputs

    def sublayer(self, layer: str, x: torch.Tensor) -> torch.Tensor:
        """x + W2 LN(gelu(W1 LN(x)))."""
        inner = self.linear(f"{layer}.ffn.fc1", self.norm(f"{layer}.final_layer_norm", x))
        inner = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
        return x + self.linear(f"{layer}.ffn.fc2", self.norm(f"{layer}.ffn.ffn_layernorm", inner))

    def logits(self, token_ids: list[int]) -> torch.Tensor:
        """(T, V)."""
        table = self.weights["embed_tokens.weight"]
        scale = 1.0 if self.fault == "unscaled embeddings" else math.sqrt(table.shape[1])
        hidden = [table[token] * scale for token in token_ids]
        for number in range(self.num_layers):
            layer = f"layers.{number}"
            first, second = f"{layer}.self_attn_layer_norm", f"{layer}.self_attn.inner_attn_ln"
            if self.fault == "norms swapped":
                first, second = second, first
            inputs = [self.norm(first, x) for x in hidden]
            outputs = self.attended(f"{layer}.self_attn", inputs)
            if self.fault != "no second norm":
                outputs = [self.norm(second, x) for x in outputs]
            for n, x in enumerate(outputs):
                hidden[n] = hidden[n] + self.linear(f"{layer}.self_attn.out_proj", x)
            hidden = [self.sublayer(layer, x) for x in hidden]
        return torch.stack([table @ self.norm("layer_norm", x) for x in hidden])


@pytest.fixture(scope="module")
def model() -> MultimodalModel:
    """Random biases and norms too, so that none can stand in for another."""
    model = build(tiny(num_layers=2), seed=4).eval()
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def test_logits_of_rows_follow_the_papers_formulas(model: MultimodalModel) -> None:
    """One document alone, and five in a packed row."""
    lengths = [40, 7, 1, 5]
    token_ids = torch.randint(0, 97, (1, 64))
    document_ids, positions = packed_row(lengths, 64)
    with torch.no_grad():
        embeddings = model.decoder.embed_tokens(token_ids)
        alone = model.head(model.decoder(embeddings[:, :40], torch.arange(40)[None]))
        hidden = model.decoder(embeddings, positions, documents=Documents(document_ids))
        packed = model.head(hidden)
    bounds = [0, 40, 47, 48, 53, 64]  # the last one is padding, a document of its own
    for start, stop in pairwise(bounds):
        expected = PlainDecoder(model).logits(token_ids[0, start:stop].tolist())
        assert (packed[0, start:stop] - expected).abs().max() < 2e-4
        if start == 0:
            assert (alone[0] - expected).abs().max() < 2e-4


@pytest.mark.parametrize("fault", FAULTS)
def test_the_formulas_tell_each_fault(model: MultimodalModel, fault: str) -> None:
    token_ids = torch.randint(0, 97, (1, 40))
    with torch.no_grad():
        embeddings = model.decoder.embed_tokens(token_ids)
        logits = model.head(model.decoder(embeddings, torch.arange(40)[None]))
    wrong = PlainDecoder(model, fault).logits(token_ids[0].tolist())
    assert (logits[0] - wrong).abs().max() > 1e-2
