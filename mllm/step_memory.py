"""Bytes that a micro-step holds beyond parameters and gradients: it is run on tensors without data.

Every storage made by an operation counts from then until nothing refers to it any more, in the
forward and the backward pass alike, so that whatever the model does is in the sum: activations that
autograd keeps, checkpointed blocks computed again, the head's chunks.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_iter

from mllm.config import Config
from mllm.images import normalise
from mllm.model.attention import Documents
from mllm.model.contrastive import ContrastiveModel
from mllm.model.multimodal import MultimodalModel
from mllm.optim import freeze
from mllm.stages.contrast import contrastive_model

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one rank in a micro-step; parameters and their gradients are left out."""

    activations: int  # inputs, and what the forward pass leaves for the backward one
    logits: int  # more at the loss head's peak: chunks of logits, gradients of the head
    peak: int  # the most at any time; at least activations + logits


class _Live(TorchDispatchMode):
    """Counts the bytes of storages made while it is on, as long as they live."""

    def __init__(self, held: list[torch.Tensor]):
        super().__init__()
        self.now = self.peak = 0
        self._seen = weakref.WeakSet([tensor.untyped_storage() for tensor in held])

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.now -= size


def build_empty(config: Config, device: str = "meta") -> Any:
    """The stage's model with what training freezes; on the meta device shapes without data."""
    with torch.device(device):
        if config.stage == "vision":
            return contrastive_model(config)
        model = MultimodalModel(config.model)
    model.vision.freeze(config.train.train_last_blocks)
    freeze(model, config.train.freeze)
    model.set_execution(
        attention_backend="sdpa",
        activation_checkpointing=config.train.activation_checkpointing,
        compile=False,
    )
    return model


def step_memory(
    config: Config, precision: str, num_images: int, num_scored: int, *, on_cpu: bool
) -> StepMemory:
    """Runs one micro-step of a rank.

    Args:
        precision: fp32, bf16 or fp16: of parameters and activations.
        num_images: pictures of the micro-batch (pretrain).
        num_scored: positions for which logits are computed (pretrain).
        on_cpu: torch's CPU kernels. Otherwise attention is taken to be fused, dropout included, as
            on a GPU: a document's probabilities are never held.
    """
    if not on_cpu:
        config = replace(config, model=replace(config.model, attention_dropout=0.0))
    with FakeTensorMode(allow_non_fake_inputs=True):
        with _default_dtype(DTYPES[precision]):
            model = build_empty(config, "cpu")
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_drop_gradient)
        live = _Live(list(model.parameters()))
        run = _contrast if isinstance(model, ContrastiveModel) else _language
        with live:
            return run(model, config, live, num_images, num_scored)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _drop_gradient(parameter: torch.Tensor) -> None:
    """Where gradients go is ZeRO's matter, not the step's."""
    parameter.grad = None


def _language(
    model: Any, config: Config, live: _Live, num_images: int, num_scored: int
) -> StepMemory:
    rows, seq_len = config.train.micro_batch_size, config.model.seq_len
    dtype = model.decoder.embed_tokens.weight.dtype
    shape = (rows, seq_len)
    token_ids, target_ids, positions = (torch.zeros(shape, dtype=torch.int64) for _ in range(3))
    slot_mask = torch.zeros(shape, dtype=torch.bool)
    side = config.model.vision.image_size
    pixels = torch.zeros(max(1, num_images), 3, side, side, dtype=torch.uint8)
    latents = model.encode_images(normalise(pixels).to(dtype))
    embeddings = model.decoder.embed_tokens(token_ids)
    embeddings = embeddings.masked_scatter(slot_mask[..., None], latents)
    scored = torch.arange(num_scored)
    hidden = model.decoder(embeddings, positions, documents=_documents(config), kept=scored)
    del embeddings, latents
    activations, live.peak, before = live.now, live.now, live.peak
    loss, _ = model.head(hidden, target_ids.flatten()[scored])
    logits = live.peak - activations
    live.peak = max(live.peak, before)
    loss.backward()
    return StepMemory(activations, logits, live.peak)


def _documents(config: Config) -> Documents | None:
    """Rows of one document each. GPU kernels for packed rows keep what causal attention does."""
    if config.train.attention_backend != "sdpa":
        return None
    shape = (config.train.micro_batch_size, config.model.seq_len)
    with _disable_current_modes():
        documents = Documents(torch.zeros(shape, dtype=torch.int64))
        documents.rectangles  # noqa: B018  (made now, with real numbers)
    return documents


def _contrast(
    model: Any, config: Config, live: _Live, num_images: int, num_scored: int
) -> StepMemory:
    batch, side = config.train.micro_batch_size, config.model.vision.image_size
    dtype = model.image_projection.weight.dtype
    pixels = torch.zeros(batch, 3, side, side, dtype=torch.uint8)
    images = model.vision(normalise(pixels).to(dtype))
    activations = live.now
    del images
    live.peak = 0
    loss, _ = model(
        normalise(pixels).to(dtype),
        torch.zeros(batch, config.contrastive.text_len, dtype=torch.int64),
        torch.ones(batch, dtype=torch.int64),
        torch.zeros(batch, dtype=torch.int64),
        torch.ones(batch, dtype=torch.bool),
    )
    logits = max(0, live.peak - activations)
    loss.backward()
    return StepMemory(activations, logits, live.peak)
