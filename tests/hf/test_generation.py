"""`generate` gives the same tokens however rows are batched, ordered and cached."""

from threading import Thread

import pytest
import torch
from transformers import AutoModelForImageTextToText, StaticCache, TextIteratorStreamer

from tests.hf.tiny import make_tiny, picture

ROWS = [
    ["An image of a red square"],
    [picture(1), "An image of"],
    [picture(2), "a red", picture(3), "Question: is there a circle? Answer:"],
    ["Question: what colour is it? Answer:", picture(4)],
]
NEW_TOKENS = 24


@pytest.fixture(scope="module", params=[0, 60], ids=["random", "trained"])
def world(request, tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("world"), num_steps=request.param)


def generate(world, rows, **settings):
    """New tokens, and the logits that each was chosen from."""
    inputs = world.processor.from_segments(rows)
    output = world.model.generate(
        **inputs,
        **{"max_new_tokens": NEW_TOKENS, "do_sample": False, "output_logits": True} | settings,
        return_dict_in_generate=True,
    )
    return output.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(output.logits, 1)


def assert_same_choices(world, alone, other):
    """Equal tokens; where they part, the two best were within 1e-3 and the logits within 1e-4."""
    (tokens, logits), (other_tokens, other_logits) = alone, other
    suppressed = world.model.generation_config.suppress_tokens
    for step, (token, other_token) in enumerate(zip(tokens, other_tokens, strict=False)):
        torch.testing.assert_close(other_logits[step], logits[step], atol=1e-4, rtol=0)
        if token != other_token:
            allowed = logits[step].clone()
            allowed[suppressed] = -torch.inf
            best, second = allowed.topk(2).values
            assert best - second <= 1e-3
            return
        if token == world.model.generation_config.eos_token_id:
            return


VARIANTS = [
    {},
    {"use_cache": False},
    {"cache_implementation": "static"},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=["cache", "no cache", "static cache"])
def test_greedy_is_the_same_for_every_batch_and_order(world, settings):
    alone = [generate(world, [row], use_cache=False) for row in ROWS]
    lines = [[0], [1], [2], [3], [0, 1], [2, 3], [3, 0, 2, 1], [0, 1, 2, 3]]
    for line in lines:
        tokens, logits = generate(world, [ROWS[i] for i in line], **settings)
        for place, i in enumerate(line):
            reference = (alone[i][0][0], alone[i][1][0])
            assert_same_choices(world, reference, (tokens[place], logits[place]))


@pytest.fixture(scope="module")
def blockwise(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blockwise")
    return make_tiny(folder, 60, seq_len=16, blockwise_attention=True)


LONG = [picture(1), "An image of a red square. Question: what colour is it? Answer: red"]
LENGTHS = {
    "grows beyond": [["An image"]],
    "beyond": [LONG],
    "left-padded": [LONG, [picture(2), "a red"], ["An image of a blue circle, on white."]],
}


@pytest.mark.parametrize("rows", LENGTHS.values(), ids=LENGTHS)
def test_blockwise_attention_is_the_same_for_every_kind_of_cache(blockwise, rows):
    settings = {"min_new_tokens": NEW_TOKENS, "output_logits": True, "do_sample": False}
    inputs = blockwise.processor.from_segments(rows)
    lengths = inputs["attention_mask"].sum(1)
    assert lengths.max() + NEW_TOKENS > blockwise.config.seq_len + 8  # blocks are at work
    alone = [generate(blockwise, [row], use_cache=False, **settings) for row in rows]
    for variant in VARIANTS:
        tokens, logits = generate(blockwise, rows, **settings, **variant)
        for i, (row_tokens, row_logits) in enumerate(alone):
            assert torch.equal(tokens[i], row_tokens[0]), variant
            torch.testing.assert_close(logits[i], row_logits[0], atol=1e-4, rtol=0)


def test_blockwise_attention_is_switched_on_at_loading(world):
    model = AutoModelForImageTextToText.from_pretrained(world.export, blockwise_attention=True)
    assert model.config.max_positions is None and world.model.config.max_positions == 128
    assert model.model.decoder.config.blockwise_attention
    ids = world.processor.from_segments([["a red " * 100]])["input_ids"]
    assert ids.shape[1] > 128
    with torch.no_grad():
        difference = model(input_ids=ids).logits - world.model(input_ids=ids).logits
    assert difference[:, :128].abs().max() < 1e-5 < difference[:, 128:].abs().max()


def test_a_static_cache_without_a_mask_has_its_room_behind_the_last_query(blockwise):
    ids = blockwise.processor.from_segments([LONG[1:]])["input_ids"]
    cache = StaticCache(config=blockwise.model.config, max_cache_len=ids.shape[1] + 30)
    with torch.no_grad():
        whole = blockwise.model(input_ids=ids).logits
        parts = [
            blockwise.model(input_ids=part, past_key_values=cache).logits
            for part in ids.split([20, *[1] * (ids.shape[1] - 20)], 1)
        ]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-4, rtol=0)


def test_an_assistant_helps_with_text_and_is_refused_beside_pictures(world):
    settings = {"max_new_tokens": 10, "do_sample": False}
    text = world.processor.from_segments([ROWS[0]])
    assisted = world.model.generate(**text, **settings, assistant_model=world.model)
    assert torch.equal(assisted, world.model.generate(**text, **settings))
    pictured = world.processor.from_segments([ROWS[1]])
    with pytest.raises(ValueError, match=r"hands no pictures to an assistant.*prompt_lookup_num"):
        world.model.generate(**pictured, **settings, assistant_model=world.model)
    looked_up = world.model.generate(**pictured, **settings, prompt_lookup_num_tokens=3)
    assert torch.equal(looked_up, world.model.generate(**pictured, **settings))


def test_the_comparison_would_see_a_difference(world):
    one, other = (generate(world, [ROWS[i]]) for i in (1, 2))
    with pytest.raises(AssertionError):
        assert_same_choices(world, (one[0][0], one[1][0]), (other[0][0], other[1][0]))


def test_a_streamer_gives_the_text_piece_by_piece(world):
    inputs = world.processor.from_segments([ROWS[1]])
    streamer = TextIteratorStreamer(
        world.processor.tokenizer, skip_prompt=True, skip_special_tokens=True
    )
    settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
    worker = Thread(
        target=world.model.generate, kwargs={**inputs, **settings, "streamer": streamer}
    )
    worker.start()
    pieces = list(streamer)
    worker.join()
    tokens = world.model.generate(**inputs, **settings)[0, inputs["input_ids"].shape[1] :]
    assert "".join(pieces) == world.processor.decode(tokens, skip_special_tokens=True)


def test_sampling_follows_the_seed_and_the_temperature(world):
    def sample(seed, temperature):
        torch.manual_seed(seed)
        return generate(world, ROWS[:2], do_sample=True, temperature=temperature, top_k=0)[0]

    assert torch.equal(sample(1, 1.0), sample(1, 1.0))
    assert not torch.equal(sample(1, 3.0), sample(2, 3.0))
    cold, greedy = sample(3, 1e-4), generate(world, ROWS[:2])[0]
    assert (cold == greedy).float().mean() > 0.9


def test_beams_are_the_same_with_and_without_cache(world):
    settings = {"num_beams": 3, "max_new_tokens": 10, "do_sample": False}
    inputs = world.processor.from_segments(ROWS)
    cached = world.model.generate(**inputs, **settings)
    assert torch.equal(cached, world.model.generate(**inputs, **settings, use_cache=False))
