"""Validation loss of text, beside a unigram model over the same tokens."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from corpora.document import TextSegment
from evals.api import Baselines, Measured, Model, Prompt, Query, RollingRequest, Support, Task
from evals.baselines import unigram_log_probs
from evals.options import TaskOptions
from evals.select import by_hash
from evals.tasks.sources import Source
from evals.uncertainty import ratio_se
from mllm.errors import UserError

BITS_PER_NAT = 1.4426950408889634
UNIGRAM_BYTES = 2_000_000  # of training text; more moves the unigram's loss by less than 0.01


class TextLoss(Task):
    """Every token of a document once, the first after `<s>`; `</s>` is not scored."""

    name = "text_loss"
    split = "validation"
    metric = "loss"
    unit = "nats/token"
    corpus_name = "text"
    is_higher_better = False
    has_images = False

    def __init__(self, data_dir: Path, options: TaskOptions = TaskOptions()) -> None:  # noqa: B008
        self.data_dir = data_dir
        self.source = Source(data_dir, "text/validation")

    @property
    def settings(self) -> dict[str, Any]:
        return {"windows": "full context, each first token after <s> or the token before it"}

    @property
    def data_fingerprint(self) -> str:
        return self.source.corpus.fingerprint

    def ids(self) -> list[str]:
        sizes = self.source.corpus.text_bytes
        return [key for key, size in zip(self.source.ids(), sizes, strict=True) if size > 0]

    def query(self, query_id: str) -> Query:
        document = self.source.document(query_id)
        text = "".join(s.text for s in document.segments if isinstance(s, TextSegment))
        return Query(query_id, (TextSegment(text),), gold="")

    def support(self) -> Support:
        raise UserError("text_loss has no shots; use --shots 0")

    def request(self, prompt: Prompt) -> RollingRequest:
        return RollingRequest(prompt)

    def row(self, query: Query, responses: Sequence[Any]) -> dict[str, Any]:
        (response,) = responses
        return {
            "raw": None,
            "answer": None,
            "candidates": None,
            "gold": None,
            "ll": round(response.ll, 6),
            "n_tok": response.num_tokens,
            "n_byte": response.num_bytes,
            "score": round(-response.ll / response.num_tokens, 6),
        }

    def row_weight(self, row: dict[str, Any]) -> float:
        return row["n_tok"]

    def measure(self, rows: list[dict[str, Any]]) -> Measured:
        losses, tokens = [-row["ll"] for row in rows], [row["n_tok"] for row in rows]
        num_bytes = sum(row["n_byte"] for row in rows)
        extra = {
            "bits_per_byte": round(BITS_PER_NAT * sum(losses) / num_bytes, 4),
            "num_tokens": sum(tokens),
            "num_bytes": num_bytes,
        }
        return Measured(sum(losses) / sum(tokens), ratio_se(losses, tokens), extra)

    @cached_property
    def _train_texts(self) -> list[str]:
        """About UNIGRAM_BYTES of training documents, by a hash of their keys."""
        source = Source(self.data_dir, "text/train")
        sizes = dict(zip(source.ids(), source.corpus.text_bytes.tolist(), strict=True))
        texts: list[str] = []
        total = 0
        for key in by_hash(sizes):
            if total >= UNIGRAM_BYTES:
                break
            total += sizes[key]
            segments = source.document(key).segments
            texts.append("".join(s.text for s in segments if isinstance(s, TextSegment)))
        return texts

    def baselines(self, queries: list[Query], model: Model) -> Baselines:
        texts = self._train_texts
        log_probs = unigram_log_probs((model.encode(text) for text in texts), model.vocab_size)
        losses = {}
        total = count = 0.0
        for query in queries:
            ids = model.encode(query.segments[0].text)  # type: ignore[union-attr]
            nats = -float(log_probs[ids].sum())
            losses[query.id] = nats / len(ids)
            total, count = total + nats, count + len(ids)
        num_bytes = sum(len(text.encode()) for text in texts)
        return Baselines(
            others={"unigram": total / count},
            row_scores={"unigram": losses},
            notes={"unigram": f"fitted on {len(texts)} training texts, {num_bytes:,} bytes"},
        )
