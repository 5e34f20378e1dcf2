"""Log-likelihoods of candidates after a prompt; the prompt is computed once and its cache reused.

All candidates of a prompt are one more row on its cache: a tree of their tokens, in which each
token sees the prompt and the tokens before it in its own candidate, and a beginning that several
candidates share stands once.

Letters: B rows, S positions of the prompts, T nodes of a row's tree, C candidates, V vocabulary.
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

MAX_NODES = 512  # tokens of the candidates of one forward pass; each has its logits, V wide

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
        batch_size: prompts of one forward pass.

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
        sums = _score(model, processor, batch)
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
) -> Iterator[float]:
    """The summed log-likelihood of each candidate, prompt by prompt."""
    inputs = processor.collate([row.prompt for row in rows], padding_side="left").to(model.device)
    output = model(**inputs, use_cache=True, logits_to_keep=1)
    first = output.logits[:, -1].float().log_softmax(-1)  # (B, V)
    jobs = [(i, token_ids) for i, row in enumerate(rows) for token_ids in row.candidate_ids]
    for chunk in _chunks(jobs):
        sums = first[[i for i, _ in chunk], [token_ids[0] for _, token_ids in chunk]].double()
        if any(len(token_ids) > 1 for _, token_ids in chunk):
            sums += _score_rest(model, output.past_key_values, inputs["attention_mask"], chunk)
        yield from sums.tolist()


def _chunks(jobs: list[tuple[int, list[int]]]) -> Iterator[list[tuple[int, list[int]]]]:
    """`jobs` in order, in parts of at most MAX_NODES tokens."""
    chunk: list[tuple[int, list[int]]] = []
    num_nodes = 0
    for job in jobs:
        if chunk and num_nodes + len(job[1]) > MAX_NODES:
            yield chunk
            chunk, num_nodes = [], 0
        chunk.append(job)
        num_nodes += len(job[1])
    yield chunk


class _Tree:
    """The tokens of one prompt's candidates but for the last of each, every parent before its
    children.
    """

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.depths: list[int] = []
        self.paths: list[list[int]] = []  # of each node: those from the root to it, with itself
        self._places: dict[tuple[int, ...], int] = {}

    def add(self, token_ids: list[int]) -> list[int]:
        """The nodes of all but the last of `token_ids`; those that are new are made."""
        path: list[int] = []
        for end in range(1, len(token_ids)):
            node = self._places.setdefault(tuple(token_ids[:end]), len(self.token_ids))
            path = [*path, node]
            if node == len(self.token_ids):
                self.token_ids.append(token_ids[end - 1])
                self.depths.append(end - 1)
                self.paths.append(path)
        return path


def _score_rest(
    model: MllmForConditionalGeneration,
    cache: Cache,
    prompt_mask: torch.Tensor,
    chunk: list[tuple[int, list[int]]],
) -> torch.Tensor:
    """float64 (C,): what the tokens after the first add, each given all before it.

    Args:
        prompt_mask: (B, S) of the prompts, padded on the left.
        chunk: prompt's row and token ids of each candidate.
    """
    trees = {i: _Tree() for i, _ in chunk}
    index = list(trees)  # rows of the cache
    # Of each scored token: its tree, the node before it, its id and its candidate.
    scored = [
        (index.index(i), node, token_id, c)
        for c, (i, token_ids) in enumerate(chunk)
        for node, token_id in zip(trees[i].add(token_ids), token_ids[1:], strict=True)
    ]
    num_nodes = max(len(tree.token_ids) for tree in trees.values())
    tokens = torch.zeros(len(trees), num_nodes, dtype=torch.long)
    depths = torch.zeros_like(tokens)
    sees = torch.eye(num_nodes, dtype=torch.bool).repeat(len(trees), 1, 1)  # (B, T, T)
    for row, tree in enumerate(trees.values()):
        tokens[row, : len(tree.token_ids)] = torch.tensor(tree.token_ids, dtype=torch.long)
        depths[row, : len(tree.depths)] = torch.tensor(tree.depths, dtype=torch.long)
        for node, path in enumerate(tree.paths):
            sees[row, node, path] = True
    tokens, depths, sees = (x.to(model.device) for x in (tokens, depths, sees))
    own_cache = DynamicCache(config=model.config)
    for layer_index, layer in enumerate(cache.layers):
        keys, values = layer.keys[index], layer.values[index]  # type: ignore[union-attr, index]
        own_cache.update(keys, values, layer_index)
    prompt_mask = prompt_mask[index].bool()
    places = (prompt_mask.long().cumsum(1) - 1).clamp(min=0)  # (B, S)
    positions = places[:, -1:] + 1 + depths  # (B, T)
    sees_prompt = prompt_mask[:, None].expand(-1, num_nodes, -1)  # (B, T, S)
    hidden = model.decode(
        model.get_input_embeddings()(tokens),
        positions,
        mask=torch.cat((sees_prompt, sees), 2)[:, None],
        cache=own_cache,
        key_positions=torch.cat((places, positions), 1),
    )
    rows, nodes, targets, candidates = torch.tensor(scored, device=model.device).T
    at, which = (rows * num_nodes + nodes).unique(return_inverse=True)
    logits = model.get_output_embeddings()(hidden.flatten(0, 1)[at])
    log_probs = logits.float().log_softmax(-1)[which, targets].double()
    return log_probs.new_zeros(len(chunk)).index_add(0, candidates, log_probs)
