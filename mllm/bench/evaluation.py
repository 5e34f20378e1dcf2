"""Ranking of an evaluation: 1,000 queries of 5 candidates and a picture each, in three ways.

* ours: `evals.exported.ExportedModel`: the picture once a query, the prompt's cache reused.
* a forward a candidate: picture, prompt and candidate computed anew for each, one at a time.
* batched, no cache: the same rows, a batch of queries with all their candidates in one forward.

The model is the demo's, freshly initialised; speed does not depend on what it has learnt.
"""

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from corpora.document import ImageSegment, TextSegment
from evals.api import Prompt, Query, RankRequest
from evals.exported import ExportedModel, plain
from mllm.bench import machine
from mllm.config import load_config
from mllm.hf.processing_mllm import PromptSegment
from mllm.hf.write import write_model
from mllm.model.init import build
from tokenizer.train import train

CONFIG = Path("mllm/configs/demo_cpu.yaml")
NUM_QUERIES = 1000
NUM_CANDIDATES = 5
BATCH = 32  # queries, as `mllm eval` has by default
SLOW_QUERIES = 100  # of the slow ways a round: rates are compared, not times
PROMPT = "An image of"


def run(rounds: int = 3, num_queries: int = NUM_QUERIES) -> dict[str, Any]:
    """
    Returns:
        Queries per second of each way, how much faster ours is, and the largest difference of a
        log-likelihood.
    """
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder))
        requests = make_requests(num_queries)

        def ours() -> float:
            for start in range(0, num_queries, BATCH):
                model.loglikelihood(requests[start : start + BATCH])
            return num_queries

        def slow(size: int) -> Callable[[], float]:
            few = requests[: min(SLOW_QUERIES, num_queries)]

            def side() -> float:
                for start in range(0, len(few), max(1, size // NUM_CANDIDATES)):
                    uncached(model, few[start : start + max(1, size // NUM_CANDIDATES)], size)
                return len(few)

            return side

        with torch.inference_mode():
            found = model.loglikelihood(requests[:BATCH])
            expected = uncached(model, requests[:BATCH], 1)
            sides = {
                "ours": ours,
                "a forward a candidate": slow(1),
                "batched, no cache": slow(BATCH * NUM_CANDIDATES),
            }
            rates = machine.interleaved(sides, rounds)
    lls = [score.ll for scores in found for score in scores]
    fast = rates["ours"]["median"]
    return {
        "machine": machine.describe("torch", "transformers"),
        "threads": torch.get_num_threads(),
        "num_queries": num_queries,
        "queries_per_second": rates,
        "speed_up": {name: fast / side["median"] for name, side in rates.items()},
        "largest_difference": max(abs(a - b) for a, b in zip(lls, expected, strict=True)),
    }


def make_model(folder: Path) -> ExportedModel:
    """The demo's architecture with a tokenizer of its size."""
    config = load_config(CONFIG).model
    draws = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = ["".join(draws.choice(letters, draws.integers(2, 9))) for _ in range(6000)]
    lines = (" ".join(draws.choice(words, 12)) + "\n" for _ in range(8000))
    tokenizer = folder / "tokenizer.model"
    tokenizer.write_bytes(train(lines, config.vocab_size))
    state = build(config, seed=0).state_dict()
    write_model(folder / "model", state, config, tokenizer, resize="squash")
    return ExportedModel(folder / "model")


def make_requests(num_queries: int) -> list[RankRequest]:
    """Queries of one picture and five names of two words each."""
    draws = np.random.default_rng(1)
    requests = []
    for i in range(num_queries):
        file = io.BytesIO()
        Image.fromarray(draws.integers(0, 255, (72, 72, 3), np.uint8)).save(file, "PNG")
        segments = (ImageSegment(file.getvalue()), TextSegment(PROMPT))
        names = tuple(f" thing{draws.integers(99)} of{draws.integers(99)} {c}" for c in "abcde")
        prompt = Prompt((), Query(str(i), segments, gold=""))
        requests.append(RankRequest(prompt, names, is_conditioned=False))
    return requests


def uncached(model: ExportedModel, requests: list[RankRequest], size: int) -> list[float]:
    """Each candidate's log-likelihood from whole rows, `size` of them a forward."""
    rows: list[list[PromptSegment]] = []
    starts = []
    for request in requests:
        text = plain(request.prompt)
        start = len(model.processor.encode(text).token_ids)
        for candidate in request.candidates:
            rows.append([*text[:-1], text[-1] + candidate])  # type: ignore[operator]
            starts.append(start)
    lls: list[float] = []
    for first in range(0, len(rows), size):
        inputs = model.processor.from_segments(rows[first : first + size], padding_side="right")
        log_probs = model.model(**inputs).logits[:, :-1].float().log_softmax(-1)
        targets = inputs["input_ids"][:, 1:]
        found = log_probs.gather(-1, targets[..., None])[..., 0] * inputs["attention_mask"][:, 1:]
        for row, start in zip(found, starts[first : first + size], strict=True):
            lls.append(row[start - 1 :].double().sum().item())
    return lls


def lines(result: dict[str, Any]) -> list[str]:
    rates, speed_up = result["queries_per_second"], result["speed_up"]
    found = [f"{result['num_queries']:,} queries of {NUM_CANDIDATES} candidates and a picture"]
    for name, side in rates.items():
        faster = "" if name == "ours" else f": ours is {speed_up[name]:.1f}x as fast"
        found.append(f"{name}: {side['median']:,.0f} queries/s{faster}")
    return [*found, f"largest difference of a log-likelihood: {result['largest_difference']:.1e}"]
