"""Chat: time to an answer's first token with what is kept, and from the command to its prompt.

* ours: `mllm.chat.engine.Engine`, which keeps pictures' latents and the prefix's keys and values.
* anew: `transformers`' `generate` over the whole conversation each turn, pictures included, as the
  example programs of KOSMOS-2 and its like do.

The first turn has pictures and a question, the second a question. The model is the demo's, freshly
initialised; speed does not depend on what it has learnt.
"""

import io
import os
import pty
import select
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mllm.bench import machine
from mllm.bench.evaluation import make_export
from mllm.chat.conversation import Answer, Conversation, Turn
from mllm.chat.engine import Engine, Request
from mllm.chat.pictures import Picture, picture_of
from mllm.chat.sampling import Sampling

# Pictures of a first turn: how many, and how large.
CASES = {
    "1 picture of 640 x 640": (1, (640, 640)),
    "1 photo of 1600 x 1200": (1, (1600, 1200)),
    "4 pictures of 640 x 640": (4, (640, 640)),
}
QUESTION = "what is in the image, and what colour is it?"
FIRST = Sampling(max_new_tokens=1)
PROMPT_MARK = b"\x1b[?2004h"  # prompt-toolkit waits for a line
SECONDS = 120.0


def run(rounds: int = 9, starts: int = 3) -> dict[str, Any]:
    """
    Returns:
        `turns`: by case, median seconds to the first token of each turn and side; `start`: seconds
        from the command to its prompt, and to its first answer.
    """
    with tempfile.TemporaryDirectory() as folder:
        export = make_export(Path(folder))
        engine = Engine(export)
        turns = {name: _turns(engine, *case, rounds) for name, case in CASES.items()}
        start = [_start(export, Path(folder)) for _ in range(starts)]
    return {
        "machine": machine.describe("torch", "transformers", "prompt-toolkit"),
        "threads": torch.get_num_threads(),
        "turns": turns,
        "start": {
            "prompt": statistics.median(prompt for prompt, _ in start),
            "answer": statistics.median(answer for _, answer in start),
        },
    }


def _photo(seed: int, size: tuple[int, int]) -> Picture:
    """A JPEG with structure, so that it decodes like a photo."""
    draws = np.random.default_rng(seed)
    small = Image.fromarray(draws.integers(0, 255, (size[1] // 8, size[0] // 8, 3), np.uint8))
    file = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return picture_of(file.getvalue(), f"{seed}.jpg")


def _turns(engine: Engine, num_pictures: int, size: tuple[int, int], rounds: int) -> dict[str, Any]:
    """Interleaved: both sides of both turns once a round, each round with pictures of its own."""
    seconds: dict[str, list[float]] = {"first": [], "second": [], "second anew": []}
    for turn in range(rounds + 1):
        pictures = [_photo(turn * num_pictures + i, size) for i in range(num_pictures)]
        conversation = Conversation(turns=[Turn([*pictures, QUESTION])])
        first = _first_token(engine, conversation)
        conversation.turns[0].answer = Answer("red")
        conversation.turns.append(Turn([QUESTION]))
        second = _first_token(engine, conversation)
        anew = _anew(engine, conversation)
        if turn:  # the first is a warm-up
            for name, value in zip(seconds, (first, second, anew), strict=True):
                seconds[name].append(value)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "seconds": median,
        "second_faster_than_first": median["first"] / median["second"],
        "second_faster_than_anew": median["second anew"] / median["second"],
    }


def _first_token(engine: Engine, conversation: Conversation) -> float:
    request = Request(engine.encode(conversation), FIRST)
    for _ in engine.answer(request):
        pass
    return request.stats.first_seconds


def _anew(engine: Engine, conversation: Conversation) -> float:
    prompt = engine.encode(conversation)
    began = time.perf_counter()
    shown: list[Any] = prompt.pictures
    files: list[Any] = [picture.data for picture in shown]
    plain = type(prompt)(prompt.token_ids, files, prompt.is_scored)
    inputs = engine.processor.collate([plain])
    engine.model.generate(**inputs, max_new_tokens=1, do_sample=False)  # type: ignore[misc]
    return time.perf_counter() - began


def _start(export: Path, folder: Path) -> tuple[float, float]:
    """Seconds from the command to its prompt, and from there to an answer given at once."""
    arguments = ["chat", "--model", str(export), "--no-history", "--max-new-tokens", "1"]
    began = time.perf_counter()
    process, terminal = pty.fork()
    if process == 0:
        os.environ |= {"TERM": "xterm"}
        os.execv(sys.executable, [sys.executable, "-m", "mllm.cli", *arguments])
    try:
        _read_until(terminal, PROMPT_MARK)
        prompt = time.perf_counter() - began
        os.write(terminal, b"hello\r")
        _read_until(terminal, PROMPT_MARK)
        return prompt, time.perf_counter() - began
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(terminal)


def _read_until(terminal: int, mark: bytes) -> None:
    shown, deadline = b"", time.monotonic() + SECONDS
    while mark not in shown:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no prompt in {shown[-500:]!r}")
        if select.select([terminal], [], [], 1.0)[0]:
            data = os.read(terminal, 65536)
            shown += data
            if b"\x1b[6n" in data:  # prompt-toolkit asks where the cursor is
                os.write(terminal, b"\x1b[1;1R")


def lines(result: dict[str, Any]) -> list[str]:
    """For people."""
    found = []
    for name, part in result["turns"].items():
        seconds = part["seconds"]
        found.append(
            f"{name}: first token after {1000 * seconds['first']:.0f} ms, of the second turn after "
            f"{1000 * seconds['second']:.0f} ms: {part['second_faster_than_first']:.1f}x as fast "
            f"(target 3x), {part['second_faster_than_anew']:.1f}x as fast as computing it anew"
        )
    start = result["start"]
    found.append(
        f"start: {start['prompt']:.1f} s to the prompt (target 5 s), {start['answer']:.1f} s to "
        "the answer to a line typed at once"
    )
    return found
