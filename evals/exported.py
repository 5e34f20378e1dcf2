"""An export folder behind the narrow door of `evals.api.Model`.

Candidate scoring with prefix reuse is `mllm.ranking`; decoding is `transformers`' `generate`.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from corpora.document import ImageSegment, TextSegment
from evals.api import (
    SEPARATOR_TEXTS,
    CandidateScore,
    Generated,
    GenerateRequest,
    Prompt,
    RankRequest,
    Segment,
    TextScore,
    VariantRequest,
    with_text,
)
from evals.trie import Trie, constrain
from mllm.hf.folder import MARKER, model_fingerprint
from mllm.hf.load import load_export
from mllm.hf.processing_mllm import END_OF_DOCUMENT, PromptSegment
from mllm.ranking import Segment as RankingSegment
from mllm.ranking import rank_candidates
from tokenizer.specials import BOS_ID, EOS_ID, PAD_ID

MAX_LOGIT_BYTES = 256 << 20  # float32 logits of the text windows computed at once


class ExportedModel:
    """A `Model`. Every method takes one batch and answers in request order."""

    def __init__(self, model_dir: str | Path, device: str | None = None) -> None:
        """Loads an export in float32, on an accelerator where there is one.

        Raises:
            mllm.errors.UserError: `model_dir` is missing or is no export.
        """
        model_dir = Path(model_dir)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.processor = load_export(model_dir, device)
        self.device, self.dtype = self.model.device.type, str(self.model.dtype)
        self.fingerprint = model_fingerprint(model_dir)
        self._record = _record(model_dir)
        self.seq_len: int = self.model.config.seq_len
        self.max_positions: int | None = self.model.config.max_positions
        self.num_latents: int = self.processor.num_latents
        self.image_size: int = self.processor.image_processor.image_size
        self.resize = self.processor.image_processor.resize
        self.vocab_size: int = self.model.config.vocab_size
        self.encode = lru_cache(maxsize=65536)(self.processor.tokenizer.encode_text)

    @property
    def has_joined_rows(self) -> bool | None:
        """Whether training had rows joined by `</s>`; None where the export does not say."""
        return self._record.get("has_joined_rows")

    def loglikelihood(
        self, requests: Sequence[RankRequest | VariantRequest]
    ) -> list[list[CandidateScore]]:
        """Each request's candidates scored after its prompt, pictures and prompt computed once.

        Endings of a `VariantRequest` are prompts of their own. All requests are of one kind.
        """
        if isinstance(requests[0], VariantRequest):
            return self._rank_variants(requests)  # type: ignore[arg-type]
        ranked = rank_candidates(
            self.model,
            self.processor,
            [flatten(request.prompt) for request in requests],
            [list(request.candidates) for request in requests],  # type: ignore[union-attr]
            batch_size=len(requests),
        )
        if not requests[0].is_conditioned:  # type: ignore[union-attr]
            return ranked
        return [
            [replace(score, ll_uncond=self._unconditional(score.text)) for score in scores]
            for scores in ranked
        ]

    def _rank_variants(self, requests: Sequence[VariantRequest]) -> list[list[CandidateScore]]:
        prompts, texts = [], []
        for request in requests:
            for ending, text in zip(request.endings, request.texts, strict=True):
                segments = joined(request.prompt.query.segments, ending)
                prompts.append(flatten(request.prompt.with_query(segments)))
                texts.append([text])
        size = max(len(request.texts) for request in requests)
        scored = rank_candidates(self.model, self.processor, prompts, texts, batch_size=size)
        found = iter(score for (score,) in scored)
        return [[next(found) for _ in request.texts] for request in requests]

    @lru_cache(maxsize=65536)  # noqa: B019 (one model a process)
    def _unconditional(self, candidate: str) -> float:
        """Log-likelihood after an empty prompt. Alone in its batch: it depends on nothing else."""
        ((score,),) = rank_candidates(self.model, self.processor, [[]], [[candidate]], batch_size=1)
        return score.ll

    @torch.inference_mode()
    def image_features(self, pictures: Sequence[bytes]) -> np.ndarray:
        """float32 (N, D): mean of the patch features, of length 1."""
        inputs = self.processor.image_processor(list(pictures), return_tensors="pt")
        pixels = inputs["pixel_values"].to(self.model.device)
        features = self.model.model.vision(pixels).float().mean(dim=1)  # (N, D)
        return torch.nn.functional.normalize(features, dim=1).cpu().numpy()

    @torch.inference_mode()
    def generate_until(self, requests: Sequence[GenerateRequest]) -> list[Generated]:
        """Continues each prompt until `</s>` or the cap. All requests share their decoding."""
        first = requests[0]
        inputs = self.processor.from_segments(
            [plain(request.prompt) for request in requests], padding_side="left"
        ).to(self.model.device)
        prompt_length = inputs["input_ids"].shape[1]
        config = GenerationConfig.from_dict(
            {
                **self.model.generation_config.to_diff_dict(),
                "do_sample": False,
                "num_beams": first.num_beams,
                "length_penalty": first.length_penalty,
                "max_new_tokens": first.max_new_tokens,
                "no_repeat_ngram_size": first.no_repeat_ngram,
            }
        )
        allowed = None
        if first.choices is not None:
            tries = [self._trie(request.choices) for request in requests]
            allowed = constrain(tries, prompt_length)
        rows = self.model.generate(  # type: ignore[misc]
            **inputs, generation_config=config, prefix_allowed_tokens_fn=allowed
        )
        return [self._generated(token_ids) for token_ids in rows[:, prompt_length:].tolist()]

    @lru_cache(maxsize=16)  # noqa: B019 (one model a process)
    def _trie(self, choices: tuple[str, ...]) -> Trie:
        return Trie([self.encode(choice) for choice in choices])

    def _generated(self, token_ids: list[int]) -> Generated:
        is_capped = EOS_ID not in token_ids
        kept = token_ids if is_capped else token_ids[: token_ids.index(EOS_ID)]
        text = self.processor.tokenizer.decode(kept, skip_special_tokens=True)
        return Generated(text, len(kept), is_capped)

    @torch.inference_mode()
    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[TextScore]:
        """Every token once: full windows, the first after `<s>`, the others after one token.

        With blockwise attention a longer text is one window.
        """
        token_ids = [self.encode(text) for text in texts]
        totals = [0.0] * len(texts)
        is_whole = [self.max_positions is None and len(ids) > self.seq_len for ids in token_ids]
        windows = [
            (i, ([BOS_ID, *ids])[start : start + self.seq_len], ids[start : start + self.seq_len])
            for i, ids in enumerate(token_ids)
            if not is_whole[i]
            for start in range(0, len(ids), self.seq_len)
        ]
        size = max(1, MAX_LOGIT_BYTES // (4 * self.seq_len * self.vocab_size))
        for start in range(0, len(windows), size):
            batch = windows[start : start + size]
            for (i, _, _), ll in zip(batch, self._window_lls(batch), strict=True):
                totals[i] += ll
        for i, ids in enumerate(token_ids):
            if is_whole[i]:
                totals[i] = self._whole_ll(ids)
        return [
            TextScore(total, len(ids), len(text.encode()))
            for total, ids, text in zip(totals, token_ids, texts, strict=True)
        ]

    def _whole_ll(self, ids: list[int]) -> float:
        """Log-likelihood of a text after `<s>`, piece by piece so that its logits fit."""
        given, cache, total = [BOS_ID, *ids[:-1]], None, 0.0
        for start in range(0, len(ids), self.seq_len):
            piece = slice(start, start + self.seq_len)
            inputs, targets = (
                torch.tensor(part[piece], device=self.model.device) for part in (given, ids)
            )
            output = self.model(input_ids=inputs[None], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            losses = torch.nn.functional.cross_entropy(
                output.logits[0].float(), targets, reduction="none"
            )
            total -= losses.double().sum().item()
        return total

    def _window_lls(self, windows: list[tuple[int, list[int], list[int]]]) -> list[float]:
        """Summed log-likelihood of each window's targets given the tokens before them."""
        longest = max(len(targets) for _, _, targets in windows)

        def padded(rows: list[list[int]], filler: int) -> torch.Tensor:
            filled = [row + [filler] * (longest - len(row)) for row in rows]
            return torch.tensor(filled, device=self.model.device)

        inputs = padded([given[: len(targets)] for _, given, targets in windows], PAD_ID)
        targets = padded([targets for _, _, targets in windows], PAD_ID)
        mask = padded([[1] * len(targets) for _, _, targets in windows], 0)
        logits = self.model(input_ids=inputs, attention_mask=mask).logits.float()  # (B, T, V)
        lls = -torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), targets, reduction="none"
        )  # (B, T)
        return (lls * mask).double().sum(dim=1).tolist()


def _record(model_dir: Path) -> dict[str, Any]:
    """What the export says about itself; empty where it says nothing."""
    path = model_dir / MARKER
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def joined(segments: tuple[Segment, ...], ending: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """Both, in which a text that goes on is one text."""
    for segment in ending:
        if isinstance(segment, TextSegment):
            segments = with_text(segments, segment.text)
        else:
            segments = (*segments, segment)
    return segments


def flatten(prompt: Prompt) -> list[RankingSegment]:
    """Shots, each with its separator after it, then the query, as one row of segments."""
    row: list[RankingSegment] = []
    for shot in prompt.shots:
        row += shot.segments
        if prompt.separator == "eos":
            row.append(END_OF_DOCUMENT)
        elif prompt.separator in SEPARATOR_TEXTS:
            row.append(TextSegment(SEPARATOR_TEXTS[prompt.separator]))
    return row + list(prompt.query.segments)


def plain(prompt: Prompt) -> list[PromptSegment]:
    """The same row as the processor takes it: strings, encoded pictures, marks."""
    return [_plain(segment) for segment in flatten(prompt)]


def _plain(segment: RankingSegment) -> PromptSegment:
    match segment:
        case TextSegment(text):
            return text
        case ImageSegment(data):
            return data
    return segment
