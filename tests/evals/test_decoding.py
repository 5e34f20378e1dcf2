"""Names as a closed list, endings, unconditional scores and features, on a tiny real export."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from corpora.document import ImageSegment, TextSegment
from evals.api import GenerateRequest, Prompt, Query, RankRequest, VariantRequest
from evals.exported import plain
from evals.trie import Trie, constrain
from tests.evals.conftest import COLOURS, png
from tests.evals.test_exported import export, prompt  # noqa: F401 (a fixture)
from tokenizer.specials import EOS_ID

NAMES = (" tiger", " tiger shark", " a red square", " no")


def test_a_trie_lets_ending_and_going_on_compete():
    trie = Trie([[5], [5, 6], [7, 8, 9]])
    assert trie.after([]) == [5, 7]
    assert trie.after([5]) == sorted([6, EOS_ID])
    assert trie.after([5, 6]) == [EOS_ID] and trie.after([7]) == [8]
    assert trie.after([5, 6, EOS_ID, EOS_ID]) == [EOS_ID]
    allowed = constrain([trie, Trie([[9]])], prompt_length=2)
    assert allowed(0, torch.tensor([1, 1, 7])) == [8] and allowed(1, torch.tensor([1, 1])) == [9]
    with pytest.raises(ValueError, match="without tokens"):
        Trie([[]])


@pytest.mark.parametrize("num_beams", [1, 2])
def test_constrained_answers_are_names_and_do_not_depend_on_the_batch(
    export: SimpleNamespace,  # noqa: F811
    num_beams: int,
):
    requests = [
        GenerateRequest(prompt(k, colour=colour), 8, num_beams, choices=NAMES)
        for k, colour in ((0, "red"), (2, "blue"))
    ]
    answers = export.model.generate_until(requests)
    assert answers == [export.model.generate_until([request])[0] for request in requests]
    for answer in answers:
        assert f" {answer.text.strip()}" in NAMES and not answer.is_capped


def test_with_as_many_beams_as_names_the_trie_finds_the_best_of_all(
    export: SimpleNamespace,  # noqa: F811
):
    """Against ranking every name with its `</s>` by one forward each."""
    model, asked = export.model, prompt(1)
    request = GenerateRequest(asked, 10, num_beams=8, length_penalty=0.0, choices=NAMES)
    (answer,) = model.generate_until([request])
    totals = {}
    for name in NAMES:
        text = plain(asked)
        ids = model.processor.encode([*text[:-1], text[-1] + name]).token_ids + [EOS_ID]
        inputs = model.processor.from_segments([[*text[:-1], text[-1] + name]])
        inputs["input_ids"] = torch.tensor([ids])
        inputs["attention_mask"] = torch.ones(1, len(ids), dtype=torch.long)
        mask = torch.zeros(1, len(ids), dtype=torch.bool)
        mask[:, :-1] = inputs["image_slot_mask"]
        inputs["image_slot_mask"] = mask
        with torch.inference_mode():
            log_probs = model.model(**inputs).logits[0].log_softmax(-1)
        start = len(model.processor.encode(text).token_ids)
        totals[name] = sum(log_probs[t - 1, ids[t]].item() for t in range(start, len(ids)))
    assert f" {answer.text.strip()}" == max(totals, key=totals.__getitem__)


def test_each_ending_is_scored_as_its_own_whole_prompt(export: SimpleNamespace):  # noqa: F811
    model = export.model
    pictures = [ImageSegment(png(COLOURS[name])) for name in ("red", "green", "blue")]
    base = prompt(1)
    endings = (
        *((picture, TextSegment(" Is it correct?")) for picture in pictures),
        (TextSegment(" the fox"),),
    )
    texts = (" Yes", " Yes", " Yes", " jumps over the dog")
    requests = [VariantRequest(base, endings, texts), VariantRequest(prompt(0), endings, texts)]
    for request, scores in zip(requests, model.loglikelihood(requests), strict=True):
        for ending, text, score in zip(endings, texts, scores, strict=True):
            segments = request.prompt.query.segments
            if isinstance(ending[0], TextSegment):  # a text that goes on is one text
                whole = (*segments[:-1], TextSegment(segments[-1].text + ending[0].text))
            else:
                whole = (*segments, *ending)
            alone = RankRequest(request.prompt.with_query(whole), (text,))
            assert score.ll == pytest.approx(model.loglikelihood([alone])[0][0].ll, abs=1e-5)
    assert len({round(score.ll, 4) for score in scores[:3]}) == 3  # pictures are seen


def test_the_unconditional_score_is_that_after_nothing(export: SimpleNamespace):  # noqa: F811
    model = export.model
    nothing = Prompt((), Query("n", (), gold=""))
    requests = [RankRequest(prompt(k), NAMES) for k in (0, 2)]
    alone = {
        name: model.loglikelihood([RankRequest(nothing, (name,), is_conditioned=False)])[0][0].ll
        for name in NAMES
    }
    for scores in model.loglikelihood(requests):
        assert {score.text: score.ll_uncond for score in scores} == pytest.approx(alone, abs=1e-6)
    bare = replace(requests[0], is_conditioned=False)
    assert model.loglikelihood([bare])[0][0].ll_uncond is None


def test_features_tell_pictures_apart_and_not_batches(export: SimpleNamespace):  # noqa: F811
    pictures = [png(colour) for colour in itertools.islice(COLOURS.values(), 4)]
    features = export.model.image_features(pictures)
    assert features.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    alone = np.concatenate([export.model.image_features([picture]) for picture in pictures])
    np.testing.assert_allclose(features, alone, atol=1e-5)
    assert np.abs(features[0] - features[1]).max() > 1e-4
