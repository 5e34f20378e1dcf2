"""Log-likelihoods of candidates after a prompt; the prompt is computed once and its cache reused.

Letters: B rows, T positions, C candidates of all prompts of a batch, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import Cache, DynamicCache

from corpora.document import ImageSegment, TextSegment
from mllm.candidate import CandidateScore
from mllm.errors import UserError
from mllm.hf.modeling_mllm import MllmForConditionalGeneration
from mllm.hf.processing_mllm import (
    END_OF_DOCUMENT,
    EncodedPrompt,
    Mark,
    MllmProcessor,
    PromptSegment,
)

# A document's segments, with `</s>` between exemplars.
Segment = TextSegment | ImageSegment | Mark

__all__ = ["END_OF_DOCUMENT", "Segment", "rank_candidates"]


@dataclass(frozen=True)
class _Row:
    """A prompt and the token ids of each of its candidates."""

    prompt: EncodedPrompt
    candidate_ids: list[list[int]]


@torch.inference_mode()
def rank_candidates(
    model: MllmForConditionalGeneration,
    processor: MllmProcessor,
    prompts: Sequence[Sequence[Segment]],
    candidates: Sequence[Sequence[str]],
    batch_size: int = 8,
) -> list[list[CandidateScore]]:
    """Scores every candidate of every prompt; results stand in the order of the arguments.

    Prompt and candidate are tokenised as one text and cut after the prompt's tokens; spaces at the
    prompt's end count as the candidate's. The first token of an empty prompt's candidate is
    conditioned on `<s>`. `</s>` after the candidate is not scored.

    Args:
        prompts: segments of each prompt.
        candidates: texts of each prompt's candidates, each with its joining space.
        batch_size: rows of one forward pass.

    Raises:
        UserError: a prompt and its longest candidate exceed the model's `max_positions`.
        ValueError: a candidate without tokens, or one that changes the tokens of its prompt.
    """
    rows = [
        _encode(processor, prompt, texts) for prompt, texts in zip(prompts, candidates, strict=True)
    ]
    available = model.config.max_positions
    for i, row in enumerate(rows):
        longest = max(map(len, row.candidate_ids))
        if available is not None and len(row.prompt.token_ids) + longest > available:
            num_positions, num_pictures = len(row.prompt.token_ids), len(row.prompt.pictures)
            raise UserError(
                f"prompt {i} has {num_positions} positions ({num_pictures} pictures of "
                f"{processor.num_latents + 2} each) and its longest candidate {longest}; the model "
                f"has {available}: use fewer shots"
            )
    scores: list[list[CandidateScore]] = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        sums = _score(model, processor, batch, batch_size)
        for row, texts in zip(batch, candidates[start : start + batch_size], strict=True):
            scores.append(
                [
                    _with_lengths(text, next(sums), len(token_ids))
                    for text, token_ids in zip(texts, row.candidate_ids, strict=True)
                ]
            )
    return scores


def _with_lengths(text: str, ll: float, num_tokens: int) -> CandidateScore:
    bare = text.removeprefix(" ")
    return CandidateScore(text, ll, num_tokens, len(bare), len(bare.encode()))


def _encode(processor: MllmProcessor, prompt: Sequence[Segment], candidates: Sequence[str]) -> _Row:
    segments: list[PromptSegment] = []
    for segment in prompt:
        if isinstance(segment, TextSegment):
            segments.append(segment.text)
        else:
            segments.append(segment.data if isinstance(segment, ImageSegment) else segment)
    last = ""
    if segments and isinstance(segments[-1], str):
        last = segments.pop()  # type: ignore[assignment]
    bare = last.rstrip(" ")
    encode = processor.tokenizer.encode_text
    bare_ids = encode(bare)
    candidate_ids = []
    for candidate in candidates:
        whole = encode(last + candidate)
        if whole[: len(bare_ids)] != bare_ids:
            raise ValueError(f"candidate {candidate!r} changes the tokens of {bare[-40:]!r}")
        if len(whole) == len(bare_ids):
            raise ValueError(f"candidate {candidate!r} has no tokens")
        candidate_ids.append(whole[len(bare_ids) :])
    return _Row(processor.encode([*segments, bare]), candidate_ids)


def _score(
    model: MllmForConditionalGeneration,
    processor: MllmProcessor,
    rows: list[_Row],
    batch_size: int,
) -> Iterator[float]:
    """The summed log-likelihood of each candidate, prompt by prompt."""
    inputs = processor.collate([row.prompt for row in rows], padding_side="left").to(model.device)
    output = model(**inputs, use_cache=True, logits_to_keep=1)
    first = output.logits[:, -1].float().log_softmax(-1)  # (B, V)
    jobs = [(i, token_ids) for i, row in enumerate(rows) for token_ids in row.candidate_ids]
    for start in range(0, len(jobs), batch_size):
        chunk = jobs[start : start + batch_size]
        sums = first[[i for i, _ in chunk], [token_ids[0] for _, token_ids in chunk]].double()
        if any(len(token_ids) > 1 for _, token_ids in chunk):
            sums += _score_rest(model, output.past_key_values, inputs["attention_mask"], chunk)
        yield from sums.tolist()


def _score_rest(
    model: MllmForConditionalGeneration,
    cache: Cache,
    prompt_mask: torch.Tensor,
    chunk: list[tuple[int, list[int]]],
) -> torch.Tensor:
    """float64 (C,): what the tokens after the first add, each given all before it.

    Args:
        prompt_mask: (B, T) of the prompts, padded on the left.
        chunk: prompt's row and token ids of each candidate.
    """
    device = model.device
    index = torch.tensor([i for i, _ in chunk], device=device)
    lengths = [len(token_ids) - 1 for _, token_ids in chunk]
    # Padded on the right with any id: causality hides it from every scored position.
    inputs = torch.zeros(len(chunk), max(lengths), dtype=torch.long)
    targets = torch.zeros_like(inputs)
    is_scored = torch.zeros_like(inputs, dtype=torch.bool)
    for c, (_, token_ids) in enumerate(chunk):
        inputs[c, : lengths[c]] = torch.tensor(token_ids[:-1])
        targets[c, : lengths[c]] = torch.tensor(token_ids[1:])
        is_scored[c, : lengths[c]] = True
    inputs, targets, is_scored = inputs.to(device), targets.to(device), is_scored.to(device)
    own_cache = DynamicCache(config=model.config)
    for layer_index, layer in enumerate(cache.layers):
        keys, values = layer.keys[index], layer.values[index]  # type: ignore[union-attr, index]
        own_cache.update(keys, values, layer_index)
    mask = torch.cat((prompt_mask[index], torch.ones_like(inputs)), dim=1)
    logits = model(input_ids=inputs, attention_mask=mask, past_key_values=own_cache).logits
    log_probs = logits.float().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    return log_probs.double().masked_fill(~is_scored, 0.0).sum(1)
