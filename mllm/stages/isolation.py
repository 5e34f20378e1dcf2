"""Looking at held-out data in the middle of a run without leaving a trace in it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from mllm import dist
from mllm.engine import Engine


@contextmanager
def isolated(engine: Engine) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards training mode, and every generator as it was.

    Training draws from none of these generators without seeding it first, so this is a second wall:
    losses are bit-equal with validation on or off, whatever it draws.
    """
    states = random.getstate(), np.random.get_state()
    devices = [dist.device()] if dist.device().type == "cuda" else []
    engine.train(False)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            yield
    finally:
        engine.train()
        random.setstate(states[0])
        np.random.set_state(states[1])
