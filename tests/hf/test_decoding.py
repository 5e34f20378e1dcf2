"""The fast step equals the decoder; the growing cache equals transformers' through every use."""

from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache

from mllm.hf.decoding import MIN_ROOM, DecoderStep, DecodingCache, GrowingLayer, is_plain
from mllm.model.init import build
from mllm.model.loss import LanguageHead
from tests.hf.tiny import CONFIG

POSITIONS = ["xpos", "sinusoidal"]


def decoder_of(position, dtype=torch.float32):
    config = replace(CONFIG, vocab_size=310, position=position)
    return build(config, seed=1).decoder.eval().to(dtype)


def cache_of(tiny, decoder):
    return DecodingCache(tiny.model.config, decoder, LanguageHead(decoder.embed_tokens))


@torch.no_grad()
def decode(decoder, cache, num_steps, is_padded, dtype=torch.float32):
    """Logits of `num_steps` new positions after a prompt of 9, rows padded or not."""
    torch.manual_seed(0)
    embeddings = torch.randn(3, 9 + num_steps, 32, dtype=dtype)
    kept = torch.ones(3, 9 + num_steps, dtype=torch.bool)
    if is_padded:
        kept[1, :4] = kept[2, :2] = False
    places = (kept.long().cumsum(1) - 1).clamp(min=0)
    causal = torch.ones(9, 9, dtype=torch.bool).tril() & kept[:, None, None, :9]
    decoder(embeddings[:, :9], places[:, :9], mask=causal, cache=cache)
    logits, head = [], LanguageHead(decoder.embed_tokens)
    for end in range(10, 10 + num_steps):
        mask = kept[:, None, None, :end] if is_padded else None
        now = embeddings[:, end - 1 : end], places[:, end - 1 : end]
        if isinstance(cache, DecodingCache):
            logits.append(cache.step(*now, mask, cache))
        else:
            logits.append(head(decoder(*now, mask=mask, cache=cache)))
    return torch.cat(logits, 1)


@pytest.mark.parametrize("is_padded", [False, True], ids=["even", "padded"])
@pytest.mark.parametrize("position", POSITIONS)
def test_the_step_equals_the_decoder_beyond_its_first_table_and_buffer(tiny, position, is_padded):
    decoder = decoder_of(position)
    num_steps = CONFIG.seq_len + 2 * MIN_ROOM
    fast = decode(decoder, cache_of(tiny, decoder), num_steps, is_padded)
    slow = decode(decoder, DynamicCache(config=tiny.model.config), num_steps, is_padded)
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=0)


def test_the_step_equals_the_decoder_in_bf16(tiny):
    decoder = decoder_of("xpos", torch.bfloat16)
    cache = cache_of(tiny, decoder)
    fast = decode(decoder, cache, 20, True, torch.bfloat16)
    slow = decode(decoder, DynamicCache(config=tiny.model.config), 20, True, torch.bfloat16)
    assert fast.dtype == torch.bfloat16
    torch.testing.assert_close(fast, slow, atol=0.05, rtol=0)


def test_a_decoder_that_is_more_than_its_weights_has_no_fast_step(tiny):
    def plain(change):
        decoder = decoder_of("xpos")
        change(decoder)
        return is_plain(decoder, LanguageHead(decoder.embed_tokens))

    class Adapted(torch.nn.Linear):
        pass

    def adapt(decoder):
        decoder.layers[0].self_attn.q_proj = Adapted(32, 32)

    def wrap(decoder):
        decoder.layers[1].forward = decoder.layers[1].forward

    assert plain(lambda decoder: None)
    assert not plain(adapt)
    assert not plain(wrap)
    assert not plain(lambda decoder: decoder.train())
    assert not plain(lambda decoder: decoder.layer_norm.register_forward_hook(lambda *_: None))
    blockwise = replace(CONFIG, vocab_size=310, blockwise_attention=True)
    model = build(blockwise, seed=1).eval()
    assert not is_plain(model.decoder, model.head)
    cache = cache_of(tiny, decoder_of("xpos").train())
    assert cache.step is None


def pieces(num, start=0):
    torch.manual_seed(start)
    return [torch.randn(4, 2, length, 8) for length in (5, 1, 1, MIN_ROOM, 3, 1)][:num]


@torch.no_grad()
def test_the_growing_layer_holds_what_the_plain_one_does():
    def reorder(layer):
        layer.reorder_cache(torch.tensor([2, 2, 0, 1]))

    def crop(layer):
        layer.crop(-2)

    def select(layer):
        layer.batch_select_indices(torch.tensor([0, 1, 2, 3]))

    ours, plain = GrowingLayer(), DynamicCache().layer_class_to_replicate()
    for change in (lambda layer: None, reorder, crop, select, lambda layer: layer.reset()):
        for piece in pieces(6):
            found, expected = (layer.update(piece, -piece) for layer in (ours, plain))
            assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
            assert ours.get_seq_length() == plain.get_seq_length()
        change(ours)
        change(plain)
        assert ours.get_seq_length() == plain.get_seq_length()


@torch.no_grad()
def test_a_crop_does_not_overwrite_what_someone_still_holds():
    """After a crop the next update must not write into the buffer that an old view shows."""
    layer = GrowingLayer()
    held, _ = layer.update(torch.ones(1, 1, 6, 2), torch.ones(1, 1, 6, 2))
    before = held.clone()
    layer.crop(-3)
    layer.update(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2))
    assert torch.equal(held, before)


def test_a_cache_begun_in_inference_mode_goes_on_outside_and_gradients_pass():
    layer = GrowingLayer()
    with torch.inference_mode():
        layer.update(torch.ones(1, 1, 6, 2), torch.ones(1, 1, 6, 2))
    with torch.no_grad():
        keys, _ = layer.update(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2))
    assert keys.sum() == 12
    fresh = GrowingLayer()
    first = torch.ones(1, 1, 2, 2, requires_grad=True)
    fresh.update(first, first)
    keys, values = fresh.update(first, first)
    (keys * values).sum().backward()
    assert first.grad is not None and (first.grad == 4).all()


def test_generate_takes_the_fast_step_and_a_plain_cache_gives_the_same(tiny, monkeypatch):
    steps = []
    call = DecoderStep.__call__
    monkeypatch.setattr(
        DecoderStep, "__call__", lambda self, *args: steps.append(1) or call(self, *args)
    )
    inputs = tiny.processor.from_segments([["An image of a red square"], ["red"]])
    settings = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    fast = tiny.model.generate(**inputs, **settings)
    assert len(steps) == 11  # the first token comes from the prompt's forward
    plain = tiny.model.generate(
        **inputs, **settings, past_key_values=DynamicCache(config=tiny.model.config)
    )
    assert len(steps) == 11
    assert torch.equal(fast, plain)
