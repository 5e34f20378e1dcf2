"""`generate` gives the same tokens however rows are batched, ordered and cached."""

from threading import Thread

import pytest
import torch
from transformers import TextIteratorStreamer

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
