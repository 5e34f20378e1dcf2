"""The decoder against `transformers`' Kosmos-2 text model, and its own properties."""

import pytest
import torch
from transformers import Kosmos2Config, Kosmos2ForConditionalGeneration
from transformers.cache_utils import DynamicCache

from mllm.model.attention import Documents
from mllm.model.config import ModelConfig, VisionConfig
from mllm.model.init import build
from mllm.model.multimodal import MultimodalModel

VISION = VisionConfig(image_size=16, patch_size=8, width=24, num_layers=2, num_heads=2, mlp_dim=48)


def tiny(**changes: object) -> ModelConfig:
    values: dict = {
        "vocab_size": 97,
        "seq_len": 64,
        "model_dim": 48,
        "num_layers": 3,
        "num_heads": 4,
        "ffn_dim": 96,
        "num_latents": 3,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "vision": VISION,
    }
    return ModelConfig(**(values | changes))


@pytest.fixture(scope="module")
def model() -> MultimodalModel:
    return build(tiny(), seed=1).eval()


def kosmos2_twin(config: ModelConfig) -> tuple[MultimodalModel, Kosmos2ForConditionalGeneration]:
    """The same random weights in our model and in `transformers`' class."""
    torch.manual_seed(0)
    theirs = Kosmos2ForConditionalGeneration(
        Kosmos2Config(
            text_config={
                "vocab_size": config.vocab_size,
                "embed_dim": config.model_dim,
                "layers": config.num_layers,
                "ffn_dim": config.ffn_dim,
                "attention_heads": config.num_heads,
                "max_position_embeddings": config.seq_len,
                "dropout": 0.0,
                "attention_dropout": 0.0,
            },
            vision_config={
                "hidden_size": config.vision.width,
                "intermediate_size": config.vision.mlp_dim,
                "num_hidden_layers": config.vision.num_layers,
                "num_attention_heads": config.vision.num_heads,
                "image_size": config.vision.image_size,
                "patch_size": config.vision.patch_size,
            },
            latent_query_num=config.num_latents,
        )
    ).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ours = MultimodalModel(config).eval()
    weights = theirs.state_dict()
    vision = {k.removeprefix("vision_model."): v for k, v in weights.items() if "vision_model" in k}
    vision = {k.removeprefix("model."): v for k, v in vision.items()}
    text = "text_model.model."
    ours.vision.vision_model.load_state_dict(
        {k: v for k, v in vision.items() if "position_ids" not in k}
    )
    ours.decoder.load_state_dict(
        {k.removeprefix(text): v for k, v in weights.items() if k.startswith(text)}
    )
    projection = "image_to_text_projection."
    ours.resampler.load_state_dict(
        {k.removeprefix(projection): v for k, v in weights.items() if k.startswith(projection)}
    )
    return ours, theirs


def test_logits_equal_those_of_kosmos2_with_two_pictures_in_a_row() -> None:
    config = tiny(position="sinusoidal")
    ours, theirs = kosmos2_twin(config)
    token_ids = torch.randint(4, config.vocab_size, (2, 20))
    slot_mask = torch.zeros(2, 20, dtype=torch.bool)
    slot_mask[:, 2:5] = slot_mask[:, 9:12] = True
    pixels = torch.randn(4, 3, 16, 16)
    positions = torch.arange(20).expand(2, -1)
    with torch.no_grad():
        mine = ours.head(ours(token_ids, slot_mask, pixels, positions))
        # Their class wants one picture tensor a row: pictures are encoded first.
        hidden = theirs.vision_model(pixels).last_hidden_state
        hidden = theirs.vision_model.model.post_layernorm(hidden)
        features = torch.nn.functional.normalize(hidden, dim=-1)
        latents, _ = theirs.image_to_text_projection(features)
        other = theirs(
            input_ids=token_ids,
            image_embeds=latents.reshape(-1, config.model_dim),
            image_embeds_position_mask=slot_mask,
        ).logits
    assert (mine - other).abs().max() < 1e-4


@pytest.mark.parametrize("position", ["xpos", "sinusoidal"])
def test_cached_decoding_equals_full_recomputation(position: str) -> None:
    model = build(tiny(position=position), seed=2).eval()
    embeddings = torch.randn(2, 40, 48)
    positions = torch.arange(40).expand(2, -1)
    cache = DynamicCache()
    with torch.no_grad():
        full = model.decoder(embeddings, positions)
        parts = []
        for start, stop in ((0, 17), (17, 18), (18, 40)):
            mask = torch.ones(stop - start, stop, dtype=torch.bool).tril(start)[None, None]
            parts.append(
                model.decoder(
                    embeddings[:, start:stop], positions[:, start:stop], mask=mask, cache=cache
                )
            )
    assert (torch.cat(parts, 1) - full).abs().max() < 1e-5


def packed_row(lengths: list[int], seq_len: int) -> tuple[torch.Tensor, torch.Tensor]:
    """document_ids and positions, int64 (1, seq_len), of documents followed by padding."""
    ids = [i for i, n in enumerate(lengths) for _ in range(n)]
    positions = [p for n in lengths for p in range(n)]
    pad = seq_len - len(ids)
    return torch.tensor([ids + [-1] * pad]), torch.tensor([positions + list(range(pad))])


def test_a_packed_document_has_the_logits_it_has_alone(model: MultimodalModel) -> None:
    lengths = [7, 30, 1, 17]
    document_ids, positions = packed_row(lengths, 64)
    embeddings = torch.randn(1, 64, 48)
    with torch.no_grad():
        packed = model.decoder(embeddings, positions, documents=Documents(document_ids))
        start = 0
        for length in lengths:
            part = slice(start, start + length)
            alone = model.decoder(embeddings[:, part], positions[:, part])
            assert (packed[:, part] - alone).abs().max() < 1e-5
            start += length


def test_documents_in_a_row_do_not_see_each_other(model: MultimodalModel) -> None:
    document_ids, positions = packed_row([20, 25, 15], 64)
    embeddings = torch.randn(1, 64, 48)
    changed = embeddings.clone()
    changed[:, 20:45] += 1.0
    one_document = torch.zeros_like(document_ids)  # the planted fault: boundaries lost

    def others_moved(ids: torch.Tensor) -> bool:
        with torch.no_grad():
            a = model.decoder(embeddings, positions, documents=Documents(ids))
            b = model.decoder(changed, positions, documents=Documents(ids))
        kept = torch.cat((a[:, :20] - b[:, :20], a[:, 45:] - b[:, 45:]), 1)
        return bool((kept != 0).any())

    assert not others_moved(document_ids)
    assert others_moved(one_document)


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_kept_positions_are_as_among_all_with_gradients_and_dropout(
    rate: float, checkpointing: str
) -> None:
    model = build(tiny(dropout=rate), seed=1).train()
    model.decoder.activation_checkpointing = checkpointing  # type: ignore[assignment]
    rows = [packed_row(lengths, 64) for lengths in ([7, 30, 1, 17], [64])]
    document_ids, positions = (torch.cat(parts) for parts in zip(*rows, strict=True))
    embeddings = torch.randn(2, 64, 48, requires_grad=True)
    kept = torch.tensor([3, 40, 41, 127])
    weights = torch.randn(4, 48)
    found = []
    for choice in (None, kept):
        hidden = model.decoder(
            embeddings,
            positions,
            documents=Documents(document_ids),
            row_seeds=torch.tensor([5, 6]),
            kept=choice,
        )
        if choice is None:
            hidden = hidden.flatten(0, 1)[kept]
        parameters = [p for p in model.decoder.parameters() if p is not model.head.weight]
        grads = torch.autograd.grad((hidden * weights).sum(), [embeddings, *parameters])
        found.append([hidden, *grads])
    for whole, alone in zip(*found, strict=True):
        assert (whole - alone).abs().max() < 1e-4 * whole.abs().max().clamp(min=1)
