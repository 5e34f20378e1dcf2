"""The real exported class behind the door, tiny and untrained, against the plain model."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from corpora.document import ImageSegment, TextSegment
from evals.api import Exemplar, GenerateRequest, Prompt, Query, RankRequest, VariantRequest
from evals.exported import ExportedModel, joined, plain
from evals.shots import check_budget, num_positions
from evals.trie import Trie
from mllm.errors import UserError
from mllm.hf.write import write_model
from mllm.model.config import ModelConfig, VisionConfig
from mllm.model.init import build
from tests.conftest import World
from tests.evals.conftest import COLOURS, png
from tokenizer.specials import BOS_ID, EOS_ID


@pytest.fixture(scope="session")
def export(world: World, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder: Path = tmp_path_factory.mktemp("export") / "model"
    config = ModelConfig(
        vocab_size=world.tokenizer.vocab_size,
        seq_len=128,
        model_dim=32,
        num_layers=2,
        num_heads=4,
        ffn_dim=64,
        num_latents=4,
        vision=VisionConfig(
            image_size=16, patch_size=8, width=32, num_layers=1, num_heads=2, mlp_dim=64
        ),
    )
    engine = build(config, seed=0).eval()
    write_model(folder, engine.state_dict(), config, world.tokenizer.model_path, resize="squash")
    return SimpleNamespace(folder=folder, model=ExportedModel(folder), tokenizer=world.tokenizer)


def prompt(num_shots: int, separator: str = "eos", colour: str = "red") -> Prompt:
    shots = tuple(
        Exemplar(f"e{i}", (ImageSegment(png(COLOURS[name])), TextSegment("An image of a square.")))
        for i, name in enumerate(list(COLOURS)[:num_shots])
    )
    segments = (ImageSegment(png(COLOURS[colour])), TextSegment("An image of"))
    return Prompt(shots, Query("q", segments, gold=""), separator)


@pytest.mark.parametrize("separator", ["eos", "newline", "blank_line", "none"])
def test_positions_counted_are_positions_taken(export: SimpleNamespace, separator: str):
    for num_shots in (0, 1, 3):
        asked = prompt(num_shots, separator)
        ids = export.model.processor.encode(plain(asked)).token_ids
        assert num_positions(asked, export.model) == len(ids)
        assert ids.count(EOS_ID) == (num_shots if separator == "eos" else 0)


def test_a_candidate_scores_what_the_whole_sequence_says(export: SimpleNamespace):
    model = export.model
    candidates = (" a red square", " a blue circle in the middle", " no")
    requests = [RankRequest(prompt(k), candidates) for k in (0, 2)]
    for request, scores in zip(requests, model.loglikelihood(requests), strict=True):
        for candidate, score in zip(candidates, scores, strict=True):
            text = plain(request.prompt)
            inputs = model.processor.from_segments([[*text[:-1], text[-1] + candidate]])
            with torch.inference_mode():
                log_probs = model.model(**inputs).logits.float().log_softmax(-1)[0]
            ids = inputs["input_ids"][0].tolist()
            tail = range(len(ids) - score.num_tokens, len(ids))
            expected = sum(log_probs[t - 1, ids[t]].item() for t in tail)
            assert score.ll == pytest.approx(expected, abs=1e-4)
            assert score.num_chars == len(candidate) - 1


def test_a_text_after_an_ending_scores_as_after_the_whole_prompt(export: SimpleNamespace):
    """Endings of text and of a picture, among them one that goes on in the prompt's last text."""
    base = prompt(1, "blank_line")
    text = (TextSegment(" the box"),)
    picture = (ImageSegment(png(COLOURS["blue"])), TextSegment("Is it correct?"))
    request = VariantRequest(base, (text, picture), (" was big.", " Yes"))
    (scores,) = export.model.loglikelihood([request])
    for ending, scored, score in zip(request.endings, request.texts, scores, strict=True):
        whole = base.with_query(joined(base.query.segments, ending))
        ((expected,),) = export.model.loglikelihood([RankRequest(whole, (scored,), False)])
        assert score.ll == pytest.approx(expected.ll, abs=1e-4)
        assert score.num_tokens == expected.num_tokens and score.text == scored


def test_a_sentence_that_begins_with_its_gap_is_scored(export: SimpleNamespace):
    empty = Prompt((), Query("q", (), gold=""))
    options = (TextSegment("Ann"),), (TextSegment("the quick fox"),)
    request = VariantRequest(empty, options, (" was lazy.",) * 2)
    (scores,) = export.model.loglikelihood([request])
    assert scores[0].num_tokens == scores[1].num_tokens and scores[0].ll != scores[1].ll


def test_answers_do_not_depend_on_the_batch(export: SimpleNamespace):
    requests = [
        GenerateRequest(prompt(k, colour=colour), max_new_tokens=6, num_beams=beams)
        for beams in (1, 3)
        for k, colour in ((0, "red"), (2, "blue"))
    ]
    for pair in (requests[:2], requests[2:]):
        together = export.model.generate_until(pair)
        assert together == [export.model.generate_until([request])[0] for request in pair]
        # An untrained model never says </s>: the cap must hold.
        assert all(answer.num_tokens <= 6 for answer in together)


def test_an_answer_held_to_names_is_one_of_them_and_a_name_may_begin_another(
    export: SimpleNamespace,
):
    names = (" tiger", " tiger shark", " missile")
    held = GenerateRequest(prompt(0), 64, num_beams=2, choices=names)
    free = GenerateRequest(prompt(0, colour="blue"), 64, num_beams=2, choices=names[:1])
    (answer,) = export.model.generate_until([held])
    assert answer.text in {name.strip() for name in names} | set(names) and not answer.is_capped
    assert export.model.generate_until([free])[0].text.strip() == "tiger"
    tiger, shark = (export.model.encode(name) for name in names[:2])
    trie = Trie([tiger, shark])
    # Where `tiger` ends, ending and going on compete.
    assert trie.after(tiger) == sorted([EOS_ID, shark[len(tiger)]])
    assert trie.after(shark) == [EOS_ID] and trie.after([]) == [tiger[0]]


def test_text_longer_than_the_context_scores_every_token_once(export: SimpleNamespace):
    model = export.model
    texts = ["the quick brown fox. " * 50, "a lazy dog"]
    scores = model.loglikelihood_rolling(texts)
    for text, score in zip(texts, scores, strict=True):
        ids = model.encode(text)
        expected = 0.0
        for start in range(0, len(ids), 128):
            window = ([BOS_ID, *ids])[start : start + 129]
            with torch.inference_mode():
                logits = model.model(input_ids=torch.tensor([window[:-1]])).logits.float()
            log_probs = logits.log_softmax(-1)[0]
            expected += sum(log_probs[t, token].item() for t, token in enumerate(window[1:]))
        assert score.num_tokens == len(ids) and score.num_bytes == len(text.encode())
        assert score.ll == pytest.approx(expected, rel=1e-5)
    assert len(model.encode(texts[0])) > 128


def test_blockwise_attention_in_config_json_lifts_every_limit(export, tmp_path: Path):
    """Against the plain model on whole rows, without a cache."""
    folder = Path(shutil.copytree(export.folder, tmp_path / "long"))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"blockwise_attention": True}))
    model = ExportedModel(folder)
    assert model.max_positions is None and model.fingerprint != export.model.fingerprint

    def log_probs(ids: list[int], **pictures: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return model.model(input_ids=torch.tensor([ids]), **pictures).logits[0].log_softmax(-1)

    texts = ["the quick brown fox. " * 60, "a lazy dog"]
    for text, score in zip(texts, model.loglikelihood_rolling(texts), strict=True):
        ids = model.encode(text)
        rows = log_probs([BOS_ID, *ids[:-1]])
        expected = sum(rows[t, token].item() for t, token in enumerate(ids))
        assert score.num_tokens == len(ids) and score.ll == pytest.approx(expected, rel=1e-5)
    assert len(model.encode(texts[0])) > 2 * model.seq_len

    asked = prompt(2)
    first = Exemplar("long", (*asked.shots[0].segments, TextSegment("a lazy dog. " * 60)))
    asked = Prompt((first, asked.shots[1]), asked.query, asked.separator)
    candidates = (" a red square", " a blue circle in the middle")
    request = RankRequest(asked, candidates)
    assert num_positions(asked, model) > model.seq_len
    check_budget([asked], [10], model)
    with pytest.raises(UserError, match="the model has 128"):
        export.model.loglikelihood([request])
    inputs = model.processor.from_segments([plain(asked)])
    prefix = inputs["input_ids"][0].tolist()
    (scores,) = model.loglikelihood([request])
    for candidate, score in zip(candidates, scores, strict=True):
        tail = model.encode(plain(asked)[-1] + candidate)[-score.num_tokens :]
        rows = log_probs([*prefix, *tail], pixel_values=inputs["pixel_values"])
        expected = sum(rows[len(prefix) + t - 1, token].item() for t, token in enumerate(tail))
        assert score.ll == pytest.approx(expected, abs=1e-4)
    (answer,) = model.generate_until([GenerateRequest(asked, max_new_tokens=6)])
    assert answer.num_tokens == 6


def test_the_fingerprint_changes_with_the_weights_only(export: SimpleNamespace, tmp_path: Path):
    copy = Path(shutil.copytree(export.folder, tmp_path / "copy"))
    (copy / "README.md").write_text("another card")
    assert ExportedModel(copy).fingerprint == export.model.fingerprint
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert ExportedModel(copy).fingerprint != export.model.fingerprint
