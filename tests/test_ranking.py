"""Ranking: cached = uncached, alone = in a batch, and where prompts end and candidates begin."""

from itertools import chain

import pytest
import torch

from corpora.document import ImageSegment, TextSegment
from mllm import ranking
from mllm.errors import UserError
from mllm.ranking import END_OF_DOCUMENT, rank_candidates
from tests.hf.tiny import make_tiny, png
from tokenizer.specials import BOI_ID, BOS_ID, EOI_ID, EOS_ID, SLOT_ID

QUESTION = "Question: what colour is it? Answer:"
PROMPTS = [
    [ImageSegment(png(1)), TextSegment("An image of")],
    [ImageSegment(png(2)), TextSegment("An image of a"), ImageSegment(png(3)), TextSegment("and")],
    [TextSegment(QUESTION)],
    [
        ImageSegment(png(4)),
        TextSegment(QUESTION),
        TextSegment(" red"),
        END_OF_DOCUMENT,
        ImageSegment(png(5)),
        TextSegment(QUESTION),
    ],
    [],
]
CANDIDATES = [
    [" a red square", " a red", " an owl"],
    [" a blue circle"],
    [" red", " blue", " not any more"],
    [" red", " blue circle"],
    ["The quick brown fox", "An"],
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def token_ids(tiny, prompt, candidate):
    """The row written out by hand, and how many of its last tokens are the candidate's."""
    ids, last = [BOS_ID], ""
    for segment in prompt:
        ids += tiny.tokenizer.encode(last)
        last = ""
        if isinstance(segment, ImageSegment):
            ids += [BOI_ID, *[SLOT_ID] * tiny.config.num_latents, EOI_ID]
        elif segment is END_OF_DOCUMENT:
            ids.append(EOS_ID)
        else:
            last = segment.text
    before = len(ids) + len(tiny.tokenizer.encode(last.rstrip(" ")))
    ids += tiny.tokenizer.encode(last + candidate)
    return ids, len(ids) - before


def uncached(tiny, prompt, candidate):
    """One whole forward of the trainer's modules, no cache, no padding."""
    ids, num_tokens = token_ids(tiny, prompt, candidate)
    token_row = torch.tensor([ids])
    pictures = [segment.data for segment in prompt if isinstance(segment, ImageSegment)]
    engine = tiny.engine
    with torch.no_grad():
        latents = None
        if pictures:
            pixels = tiny.processor.image_processor(pictures)["pixel_values"]
            latents = engine.encode_images(pixels)
        embeddings = engine.embed(token_row, token_row == SLOT_ID, latents)
        hidden = engine.decoder(embeddings, torch.arange(len(ids))[None])
        log_probs = engine.head(hidden)[0].log_softmax(-1)
    places = range(len(ids) - num_tokens, len(ids))
    return sum(log_probs[i - 1, ids[i]].item() for i in places), num_tokens


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_cached_scores_equal_uncached_ones_at_every_batch_size(tiny, batch_size):
    results = rank_candidates(tiny.model, tiny.processor, PROMPTS, CANDIDATES, batch_size)
    for prompt, texts, scores in zip(PROMPTS, CANDIDATES, results, strict=True):
        assert [score.text for score in scores] == texts
        for score in scores:
            ll, num_tokens = uncached(tiny, prompt, score.text)
            assert score.num_tokens == num_tokens
            assert score.ll == pytest.approx(ll, abs=1e-5, rel=1e-6)


@pytest.mark.parametrize("max_nodes", [1, 6, 20])
def test_scores_do_not_depend_on_how_candidates_are_cut_into_passes(tiny, max_nodes, monkeypatch):
    whole = rank_candidates(tiny.model, tiny.processor, PROMPTS, CANDIDATES)
    monkeypatch.setattr(ranking, "MAX_NODES", max_nodes)
    cut = rank_candidates(tiny.model, tiny.processor, PROMPTS, CANDIDATES)
    for one, other in zip(chain(*whole), chain(*cut), strict=True):
        assert one.ll == pytest.approx(other.ll, abs=1e-5)


def test_beginnings_that_candidates_share_stand_once_in_the_tree():
    tree = ranking._Tree()
    assert tree.add([5, 6, 7]) == [0, 1]
    assert tree.add([5, 6, 8, 9]) == [0, 1, 2]
    assert tree.add([4, 6, 1]) == [3, 4]
    assert tree.add([5]) == []
    assert tree.token_ids == [5, 6, 8, 4, 6]
    assert tree.depths == [0, 1, 2, 0, 1]
    assert tree.paths == [[0], [0, 1], [0, 1, 2], [3], [3, 4]]


def test_pictures_change_scores(tiny):
    prompts = [[ImageSegment(png(seed)), TextSegment("An image of")] for seed in (1, 2)]
    one, other = rank_candidates(tiny.model, tiny.processor, prompts, [[" a red"]] * 2)
    assert abs(one[0].ll - other[0].ll) > 1e-3


def test_a_space_at_the_end_of_the_prompt_belongs_to_the_candidate(tiny):
    joined = rank_candidates(
        tiny.model, tiny.processor, [[TextSegment(QUESTION)]], [[" red", " blue"]]
    )
    spaced = rank_candidates(
        tiny.model, tiny.processor, [[TextSegment(QUESTION + " ")]], [["red", "blue"]]
    )
    for one, other in zip(joined[0], spaced[0], strict=True):
        assert one.ll == pytest.approx(other.ll, abs=1e-5)
        assert (one.num_tokens, one.num_chars) == (other.num_tokens, other.num_chars)


def test_a_candidate_that_begins_another_scores_at_least_as_high_in_sum(tiny):
    (scores,) = rank_candidates(
        tiny.model, tiny.processor, [PROMPTS[0]], [[" a red", " a red square"]]
    )
    assert scores[0].ll > scores[1].ll


def test_lengths_in_characters_and_bytes(tiny):
    (scores,) = rank_candidates(tiny.model, tiny.processor, [[TextSegment("x")]], [[" é b"]])
    assert (scores[0].num_chars, scores[0].num_bytes) == (3, 4)


def test_text_that_looks_like_a_special_token_is_scored_as_text(tiny):
    (scores,) = rank_candidates(tiny.model, tiny.processor, [[TextSegment("x")]], [[" </s>"]])
    assert scores[0].num_tokens > 1


def test_a_prompt_that_does_not_fit_names_both_lengths(tiny):
    with pytest.raises(UserError, match=r"prompt 1 has \d+ positions .* the model has 128"):
        rank_candidates(
            tiny.model,
            tiny.processor,
            [[TextSegment("x")], [TextSegment("red " * 200)]],
            [[" a"], [" b"]],
        )


def test_a_candidate_without_tokens_is_refused(tiny):
    with pytest.raises(ValueError, match="no tokens"):
        rank_candidates(tiny.model, tiny.processor, [[TextSegment("x")]], [[""]])
