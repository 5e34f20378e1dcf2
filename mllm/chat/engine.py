"""The model behind a chat: answers piece by piece, pictures encoded once, prefixes computed once.

Everything goes through the exported class and `transformers`' `generate`; what is added here is
what it is given: the latents of pictures by the hash of their bytes, and a cache of keys and values
that holds the longest known beginning of the prompt.
"""

import copy
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Cache,
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import logging

from corpora.document import ImageSegment, TextSegment
from mllm.candidate import CandidateScore
from mllm.chat.conversation import Conversation
from mllm.chat.pictures import Picture
from mllm.chat.prompt import Segment, segments_of
from mllm.chat.sampling import Sampling
from mllm.chat.text import printable_lines, whole
from mllm.errors import UserError
from mllm.hf.folder import model_fingerprint
from mllm.hf.load import load_export
from mllm.hf.processing_mllm import EncodedPrompt
from mllm.ranking import rank_candidates
from tokenizer.specials import EOS_ID, SLOT_ID

MAX_LATENTS = 256  # pictures whose latents are kept

# What stands at a position: a token, or a picture's slot by the picture's hash.
Key = int | str


class ContextFull(UserError):
    """A prompt and its longest answer exceed the model's positions."""

    def __init__(self, used: int, wanted: int, available: int) -> None:
        super().__init__(
            f"the conversation takes {used} positions and an answer up to {wanted}, the model has "
            f"{available}"
        )
        self.used, self.wanted, self.available = used, wanted, available


@dataclass
class Stats:
    """What an answer took. Seconds are wall time."""

    num_prompt: int = 0  # positions
    num_reused: int = 0  # of these, found in the cache
    num_pictures: int = 0
    num_encoded: int = 0  # pictures that went through the vision encoder
    num_new: int = 0  # tokens of the answer
    first_seconds: float = 0.0  # from the request to the answer's first token
    seconds: float = 0.0
    is_capped: bool = False  # ended by `max_new_tokens`

    @property
    def tokens_per_second(self) -> float | None:
        """After the first token; None where there is no second."""
        rest = self.seconds - self.first_seconds
        return (self.num_new - 1) / rest if self.num_new > 1 and rest > 0 else None

    @property
    def values(self) -> dict[str, Any]:
        return asdict(self) | {"tokens_per_second": self.tokens_per_second}


@dataclass
class _Prefix:
    """Keys and values of positions, and what stands at each."""

    cache: Any
    keys: list[Key]


@dataclass
class Request:
    """One answer to be made.

    Args:
        stopped: set it to end the answer at its next token.
        uses_cache: False computes everything anew, as a check.
    """

    prompt: EncodedPrompt
    sampling: Sampling
    stopped: threading.Event = field(default_factory=threading.Event)
    uses_cache: bool = True
    stats: Stats = field(default_factory=Stats)


class Engine:
    """One model. Several threads may ask; answers are computed one at a time.

    Args:
        max_prefixes: caches of prefixes that are kept: one a conversation that goes on at once.
    """

    def __init__(
        self, model_dir: str | Path, device: str | None = None, max_prefixes: int = 1
    ) -> None:
        """
        Raises:
            UserError: `model_dir` is no export.
        """
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model_dir = Path(model_dir)
        self.model, self.processor = load_export(model_dir, self.device)
        self.max_positions: int | None = self.model.config.max_positions
        self.template: str = self.processor.template
        tokenizer = self.processor.tokenizer
        newline = tokenizer.encode_text("\n") if self.template == "completion" else []
        self._stops = [EOS_ID, *newline]
        # Read once: it copies much, and an answer's first token waits for it.
        self._exported_settings = self.model.generation_config.to_diff_dict()
        self._max_prefixes = max_prefixes
        self._prefixes: list[_Prefix] = []  # the latest used last
        self._latents: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._lock = threading.Lock()
        # One thread for all answers: torch makes a pool of threads for each that computes, and an
        # answer's first token would wait for that.
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        threading.Thread(target=_run_all, args=[self._jobs], daemon=True).start()
        self._fingerprint: str | None = None

    @property
    def fingerprint(self) -> str:
        """Of the export's files; read when first asked for."""
        if self._fingerprint is None:
            self._fingerprint = model_fingerprint(self.model_dir)
        return self._fingerprint

    @property
    def description(self) -> dict[str, str]:
        return {"name": self.model_dir.resolve().name, "fingerprint": self.fingerprint}

    def encode(self, conversation: Conversation) -> EncodedPrompt:
        """The prompt of the conversation as it stands."""
        return self.processor.encode(list(map(_spelt, segments_of(conversation, self.template))))

    def check_room(self, prompt: EncodedPrompt, max_new_tokens: int) -> None:
        """
        Raises:
            ContextFull: the prompt and that many tokens do not fit.
        """
        used, available = len(prompt.token_ids), self.max_positions
        if available is not None and used + max_new_tokens > available:
            raise ContextFull(used, max_new_tokens, available)

    def turns_to_drop(self, conversation: Conversation, max_new_tokens: int) -> int | None:
        """The fewest oldest turns without which an answer fits, shots kept; None: none are enough.

        The last turn, which asks, always stays.
        """
        shorter = conversation.branched()
        for number in range(len(shorter.asked_turns)):
            try:
                self.check_room(self.encode(shorter), max_new_tokens)
            except ContextFull:
                shorter.num_dropped += 1
                continue
            return number
        return None

    def answer(self, request: Request) -> Iterator[str]:
        """The answer's text in pieces, free of control characters and of spaces around it.

        Closing the iterator, or setting `request.stopped`, ends it at the next token. Beam search
        comes in one piece. `request.stats` is whole when the iterator is done.

        Raises:
            ContextFull: it does not fit.
        """
        start = time.perf_counter()
        self.check_room(request.prompt, request.sampling.max_new_tokens)
        pieces: queue.Queue[Any] = queue.Queue()
        closed, done = threading.Event(), threading.Event()
        failures: list[BaseException] = []

        def work() -> None:
            try:
                with self._lock, torch.inference_mode():
                    if request.stopped.is_set() or closed.is_set():  # while others were answered
                        return
                    self._generate(request, pieces, closed, start)
            except BaseException as error:
                failures.append(error)
            finally:
                pieces.put(None)
                done.set()

        self._jobs.put(work)
        has_begun, held = False, ""
        try:
            while (piece := pieces.get()) is not None:
                text = held + printable_lines(piece)
                if not has_begun:
                    text = text.lstrip()
                held = text[len(text.rstrip()) :]  # given out only if something follows
                if text := text.rstrip():
                    has_begun = True
                    yield text
        finally:
            closed.set()
            done.wait()
        if failures:
            raise failures[0]

    def _generate(
        self,
        request: Request,
        pieces: "queue.Queue[Any]",
        closed: threading.Event,
        start: float,
    ) -> None:
        """Puts the answer's pieces; the prefix it began from then holds all that was computed."""
        stats, prompt = request.stats, request.prompt
        keys = _keys(prompt)
        stats.num_prompt, stats.num_pictures = len(keys), len(prompt.pictures)
        prefix, stats.num_reused = (
            self._longest(keys) if request.uses_cache else (self._new_prefix(), 0)
        )

        class Stopped(StoppingCriteria):
            def __call__(self, input_ids: Any, scores: Any, **settings: Any) -> Any:
                if not stats.first_seconds:
                    stats.first_seconds = time.perf_counter() - start
                stats.num_new = input_ids.shape[1] - len(keys)
                is_over = request.stopped.is_set() or closed.is_set()
                return torch.full((len(input_ids),), is_over, device=input_ids.device)

        settings = {
            "stopping_criteria": StoppingCriteriaList([Stopped()]),
            "generation_config": self._generation_config(request.sampling),
        }
        torch.manual_seed(request.sampling.seed)
        try:
            search = self._sample if request.sampling.beams == 1 else self._search
            new_ids = search(request, prefix, pieces, settings)
        except BaseException:
            self._forget(prefix)  # its cache may hold more than its keys say
            raise
        prefix.keys = [*keys, *new_ids][: prefix.cache.get_seq_length()]
        stats.num_new = len(new_ids)
        stats.is_capped = (
            len(new_ids) >= request.sampling.max_new_tokens and new_ids[-1] not in self._stops
        )
        stats.seconds = time.perf_counter() - start

    def _sample(
        self,
        request: Request,
        prefix: _Prefix,
        pieces: "queue.Queue[Any]",
        settings: dict[str, Any],
    ) -> list[int]:
        """One token after another; `generate` computes what the prefix lacks."""
        ids = torch.tensor([request.prompt.token_ids], device=self.device)  # (1, T)
        rows = self.model.generate(  # type: ignore[misc]
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=prefix.cache,
            streamer=_Pieces(self.processor.tokenizer, pieces),
            **self._new_pictures(request),
            **settings,
        )
        return rows[0, ids.shape[1] :].tolist()

    def _search(
        self,
        request: Request,
        prefix: _Prefix,
        pieces: "queue.Queue[Any]",
        settings: dict[str, Any],
    ) -> list[int]:
        """Beam search on a copy of the prefix for each beam.

        What the prefix lacks is computed first: `generate` would deal latents to beams by the slots
        of the whole prompt.
        """
        ids = torch.tensor([request.prompt.token_ids], device=self.device)  # (1, T)
        length, known = ids.shape[1], request.stats.num_reused
        if known < length - 1:
            self.model(
                input_ids=ids[:, known:-1],
                past_key_values=prefix.cache,
                logits_to_keep=1,
                **self._new_pictures(request),
            )
        rows = self.model.generate(  # type: ignore[misc]
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=_copied(prefix.cache, request.sampling.beams),
            **settings,
        )
        new_ids = rows[0, length:].tolist()
        pieces.put(self.processor.tokenizer.decode(new_ids, skip_special_tokens=True))
        return new_ids

    def _new_pictures(self, request: Request) -> dict[str, Any]:
        """Latents of the pictures behind the known prefix, as the model's argument."""
        pictures = _pictures_from(request.prompt, request.stats.num_reused)
        if not pictures:
            return {}
        latents = self._latents_of(pictures, request.stats, request.uses_cache)
        return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=latents)}}

    def _generation_config(self, sampling: Sampling) -> GenerationConfig:
        samples = sampling.temperature > 0
        settings: dict[str, Any] = {
            **self._exported_settings,
            "do_sample": samples,
            "num_beams": sampling.beams,
            "max_new_tokens": sampling.max_new_tokens,
            "eos_token_id": self._stops,
        }
        if samples:
            settings |= {
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
            }
        return GenerationConfig.from_dict(settings)

    def _new_prefix(self) -> _Prefix:
        return _Prefix(self.model._new_cache(), [])

    def _longest(self, keys: list[Key]) -> tuple[_Prefix, int]:
        """A kept cache cut to what it shares with `keys`, and how much that is.

        At least the last position is left to compute: its logits begin the answer.
        """
        best, shared = None, 0
        for prefix in self._prefixes:
            same = _num_shared(prefix.keys, keys[:-1])
            if same > shared:
                best, shared = prefix, same
        while shared and isinstance(keys[shared - 1], str):  # never end within a picture
            shared -= 1
        if best is None or not shared:
            best, shared = self._new_prefix(), 0
        elif shared < len(best.keys) and len(self._prefixes) < self._max_prefixes:
            best = _Prefix(_copied(best.cache, 1), list(best.keys))  # another may go on with it
        self._forget(best)
        self._prefixes = [*self._prefixes, best][-self._max_prefixes :]
        if excess := best.cache.get_seq_length() - shared:
            best.cache.crop(-excess)
        best.keys = best.keys[:shared]
        return best, shared

    def _forget(self, prefix: _Prefix) -> None:
        self._prefixes = [kept for kept in self._prefixes if kept is not prefix]

    def _latents_of(
        self, pictures: Sequence[Picture], stats: Stats, uses_cache: bool
    ) -> torch.Tensor:
        """(I, L, D): of those seen before, what was computed then."""
        known = self._latents if uses_cache else OrderedDict()
        new = {p.sha256: p for p in pictures if p.sha256 not in known}
        if new:
            inputs = self.processor.image_processor(
                [picture.data for picture in new.values()], return_tensors="pt"
            )
            encoded: Any = self.model.get_image_features(inputs["pixel_values"].to(self.device))
            known.update(zip(new, encoded.pooler_output, strict=True))
            stats.num_encoded = len(new)
        latents = torch.stack([known[picture.sha256] for picture in pictures])
        for picture in pictures:
            known.move_to_end(picture.sha256)
        while len(known) > MAX_LATENTS:
            known.popitem(last=False)
        return latents

    def rank(self, conversation: Conversation, candidates: Sequence[str]) -> list[CandidateScore]:
        """Log-likelihood of each candidate as the answer, in the order given.

        Raises:
            UserError: it does not fit, or a candidate is empty or given twice.
        """
        texts = [whole(candidate.strip()) for candidate in candidates]
        if len(texts) < 2 or not all(texts):
            raise UserError("candidates are two texts or more, such as: red | green | blue")
        if doubled := {text for text in texts if texts.count(text) > 1}:
            raise UserError(f"candidate {sorted(doubled)[0]!r} is given twice")
        encode = self.processor.tokenizer.encode_text
        longest = max(len(encode(f" {text}")) for text in texts)
        self.check_room(self.encode(conversation), longest)
        segments = [_ranked(part) for part in segments_of(conversation, self.template)]
        with self._lock:
            (scores,) = rank_candidates(
                self.model, self.processor, [segments], [[f" {text}" for text in texts]]
            )
        return scores

    def close(self) -> None:
        """Lets go of what is kept. Nothing can be asked any more."""
        self._jobs.put(None)
        with suppress(RuntimeError), self._lock:
            self._prefixes.clear()
            self._latents.clear()


def _run_all(jobs: "queue.Queue[Callable[[], None] | None]") -> None:
    for job in iter(jobs.get, None):
        job()


class _Pieces(TextIteratorStreamer):
    """Puts each whole word where the answer's iterator looks."""

    def __init__(self, tokenizer: Any, pieces: "queue.Queue[Any]") -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.pieces = pieces

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.pieces.put(text)


def _copied(cache: Cache, num_rows: int) -> Any:
    """A copy of a cache of one row, with as many rows."""
    copied = copy.deepcopy(cache)
    if num_rows > 1:
        copied.batch_repeat_interleave(num_rows)
    return copied


def _keys(prompt: EncodedPrompt) -> list[Key]:
    """What stands at each position; slots by their picture's hash."""
    keys: list[Key] = []
    pictures = iter(prompt.pictures)
    before, digest = -1, ""
    for token_id in prompt.token_ids:
        if token_id == SLOT_ID and before != SLOT_ID:
            picture: Any = next(pictures)
            digest = picture.sha256
        keys.append(digest if token_id == SLOT_ID else token_id)
        before = token_id
    return keys


def _pictures_from(prompt: EncodedPrompt, place: int) -> list[Any]:
    """The pictures whose slots stand at `place` or later."""
    ids = prompt.token_ids
    starts = [i for i, token_id in enumerate(ids) if token_id == SLOT_ID and ids[i - 1] != SLOT_ID]
    return [p for p, start in zip(prompt.pictures, starts, strict=True) if start >= place]


def _num_shared(one: Sequence[Key], other: Sequence[Key]) -> int:
    """Positions at the start that are equal."""
    number = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        number += 1
    return number


def _spelt(segment: Segment) -> Any:
    return whole(segment) if isinstance(segment, str) else segment


def _ranked(segment: Segment) -> Any:
    if isinstance(segment, Picture):
        return ImageSegment(segment.data)
    return TextSegment(whole(segment)) if isinstance(segment, str) else segment
