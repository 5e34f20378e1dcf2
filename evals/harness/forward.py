"""What both adapters ask of an export: log-likelihoods of continuations, and text.

Plain forward passes over whole rows, without a cache of the prompt: a second way to the numbers of
`mllm.ranking`, and the only one that says whether a continuation is the greedy one.

Letters: B rows, T positions, N positions whose logits are kept, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from evals.exported import MAX_LOGIT_BYTES, ExportedModel
from mllm.errors import UserError
from mllm.hf.processing_mllm import EncodedPrompt
from mllm.hf.tokenization_mllm import MllmTokenizer
from tokenizer.specials import EOS_ID


@dataclass(frozen=True)
class Continuation:
    """Tokens to score after a prompt, whose own begin with `<s>` unless they were cut."""

    prompt: EncodedPrompt
    token_ids: list[int]


@dataclass(frozen=True)
class Decoding:
    """How text is written: until one of `until`, `</s>` or the cap."""

    max_new_tokens: int
    until: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)  # of `transformers`' GenerationConfig

    @classmethod
    def from_kwargs(cls, kwargs: dict[str, Any]) -> "Decoding":
        """Reads a harness's generation settings; a temperature of 0 means greedy.

        Raises:
            UserError: a setting that `transformers` does not have.
        """
        kwargs = dict(kwargs)
        until = kwargs.pop("until", None) or ()
        until = (until,) if isinstance(until, str) else tuple(until)
        max_new_tokens = kwargs.pop("max_new_tokens")
        if not kwargs.get("do_sample") or kwargs.get("temperature") == 0:
            kwargs = {k: v for k, v in kwargs.items() if k not in ("temperature", "top_p", "top_k")}
            kwargs["do_sample"] = False
        known = GenerationConfig().to_dict()
        if unknown := sorted(set(kwargs) - set(known)):
            raise UserError(f"generation_kwargs: no setting {unknown[0]!r}; remove it")
        return cls(max_new_tokens, until, kwargs)


@torch.inference_mode()
def score_continuations(
    model: ExportedModel, requests: Sequence[Continuation], batch_size: int
) -> Iterator[tuple[int, float, bool]]:
    """Each request's number, summed log-likelihood (nats) and whether it is the greedy text.

    Longest rows first. Requests whose rows agree but for the last token share one.

    Args:
        batch_size: rows of one forward pass, fewer where their logits would not fit.
    """
    for batch in _batches(model, requests, batch_size):
        rows = [_inputs(requests[numbers[0]]) for numbers in batch]
        kept = max(len(requests[i].token_ids) for numbers in batch for i in numbers)
        inputs = model.processor.collate(rows, padding_side="left").to(model.model.device)
        logits = model.model(**inputs, logits_to_keep=kept).logits.float()  # (B, N, V)
        log_probs, greedy = logits.log_softmax(-1), logits.argmax(-1)
        for row, numbers in enumerate(batch):
            for i in numbers:
                token_ids = requests[i].token_ids
                targets = torch.tensor(token_ids, device=logits.device)
                tail = slice(kept - len(token_ids), kept)
                lls = log_probs[row, tail].gather(-1, targets[:, None])
                yield i, lls.double().sum().item(), bool((greedy[row, tail] == targets).all())


def _inputs(request: Continuation) -> EncodedPrompt:
    """What the model is given: all but the last token, which only is predicted."""
    return replace(
        request.prompt, token_ids=request.prompt.token_ids + request.token_ids[:-1], is_scored=[]
    )


def _batches(
    model: ExportedModel, requests: Sequence[Continuation], batch_size: int
) -> Iterator[list[list[int]]]:
    """Batches of rows, each row the numbers of the requests that share it."""
    shared: dict[tuple[Any, ...], list[int]] = {}
    for i, request in enumerate(requests):
        row = _inputs(request)
        key = (tuple(row.token_ids), tuple(id(picture) for picture in row.pictures))
        shared.setdefault(key, []).append(i)
    batch: list[list[int]] = []
    kept = 0
    for _, numbers in sorted(shared.items(), key=lambda item: (-len(item[0][0]), item[1])):
        longest = max(kept, *(len(requests[i].token_ids) for i in numbers))
        num_bytes = 4 * (len(batch) + 1) * longest * model.vocab_size
        if batch and (len(batch) == batch_size or num_bytes > MAX_LOGIT_BYTES):
            yield batch
            batch, longest = [], max(len(requests[i].token_ids) for i in numbers)
        batch.append(numbers)
        kept = longest
    if batch:
        yield batch


@torch.inference_mode()
def continue_prompts(
    model: ExportedModel, prompts: list[EncodedPrompt], decoding: Decoding
) -> list[str]:
    """The text after each prompt, up to the first stop string, which is not part of it."""
    inputs = model.processor.collate(prompts, padding_side="left").to(model.model.device)
    num_given = inputs["input_ids"].shape[1]
    tokenizer = model.processor.tokenizer
    config = GenerationConfig.from_dict(
        {
            **model.model.generation_config.to_diff_dict(),
            **decoding.settings,
            "max_new_tokens": decoding.max_new_tokens,
        }
    )
    rows = model.model.generate(  # type: ignore[misc]
        **inputs,
        generation_config=config,
        stopping_criteria=StoppingCriteriaList([_AtStrings(tokenizer, decoding.until, num_given)]),
    )
    return [_text(tokenizer, row, decoding.until) for row in rows[:, num_given:].tolist()]


def _text(tokenizer: MllmTokenizer, token_ids: list[int], until: tuple[str, ...]) -> str:
    if EOS_ID in token_ids:
        token_ids = token_ids[: token_ids.index(EOS_ID)]
    text = str(tokenizer.decode(token_ids, skip_special_tokens=True))
    for stop in until:
        if stop:
            text = text.split(stop)[0]
    return text


class _AtStrings(StoppingCriteria):
    """Ends a row as soon as a stop string stands in what it has written."""

    def __init__(self, tokenizer: MllmTokenizer, until: tuple[str, ...], num_given: int) -> None:
        self.tokenizer, self.num_given = tokenizer, num_given
        self.until = [stop for stop in until if stop]
        # Tokens that a stop string can spread over: each has at least one byte.
        self.reach = max((len(stop.encode()) for stop in self.until), default=1)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **settings: Any) -> torch.Tensor:
        """bool (B,)."""
        tails = input_ids[:, max(self.num_given, input_ids.shape[1] - self.reach) :].tolist()
        texts = [self.tokenizer.decode(tail, skip_special_tokens=True) for tail in tails]
        ended = [any(stop in text for stop in self.until) for text in texts]
        return torch.tensor(ended, device=input_ids.device)
