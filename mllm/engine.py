"""The only file that imports deepspeed: builds the engine, takes a step, saves and loads its state.

DeepSpeed's own checkpoint files are pickles. They are read back only from a run folder whose
manifest verifies, and are to be trusted like code. Where they are read for another world size or
ZeRO stage (reshape.py), only classes named here are unpickled.
"""

import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from mllm import dist
from mllm.averaging import Piece, WeightAverage
from mllm.config import Config
from mllm.engine_config import deepspeed_config
from mllm.errors import UserError
from mllm.files import fingerprint
from mllm.optim import build_optimizer
from mllm.reshape import MOMENTS, SavedState
from mllm.snapshot import HostCopies

WATCHDOG_MARGIN_SECONDS = 30.0
STALE_BUILD_SECONDS = 600  # building an operator takes one or two minutes


@dataclass(frozen=True)
class StepResult:
    applied: bool  # False: non-finite gradients, the step was skipped
    grad_norm: float  # before clipping
    loss_scale: float | None = None  # of fp16, which moves it


class Captured(NamedTuple):
    """What a rank writes of a checkpoint."""

    files: dict[str, Any]  # name in the checkpoint's folder to what `torch.save` gets
    weights: dict[str, torch.Tensor]  # float32, of the whole module; on rank 0
    averages: dict[str, torch.Tensor] | None = None  # of train.ema_decay: trainable ones alone


class Engine:
    """A module under DeepSpeed. Parameters move at the `micro_step` that ends a step."""

    def __init__(self, module: nn.Module, config: Config, precision: str):
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        self.precision = precision
        self.stage = config.zero.stage
        self.settings = deepspeed_config(config, precision, dist.world_size())
        self.grad_accum_steps: int = self.settings["gradient_accumulation_steps"]
        optimizer = build_optimizer(module, config)
        names = {parameter: name for name, parameter in module.named_parameters()}
        # Elements of each trainable parameter, in the order of the optimizer's groups.
        self.trainable_sizes: dict[str, int] = {
            names[parameter]: parameter.numel()
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config=self.settings,
        )
        self.module = module
        self._stage0_norm = math.nan
        self.average: WeightAverage | None = None
        if config.train.ema_decay:
            self.average = WeightAverage(self.pieces(), config.train.ema_decay)

    @property
    def zero_fingerprint(self) -> str:
        """Of what decides how ranks lay out what they save, `world_size` and precision apart."""
        return fingerprint(self.settings["zero_optimization"])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._engine(*args, **kwargs)

    def backward(self, loss: torch.Tensor) -> None:
        """Adds gradients of this rank's share of the step's loss.

        The gradient of the step is the SUM over ranks and micro-steps of what is given here:
        DeepSpeed averages over both, which is undone by the factor.
        """
        self._engine.backward(loss * (dist.world_size() * self.grad_accum_steps))

    def micro_step(self) -> None:
        """Tells DeepSpeed that a micro-step is over; the last one of a step updates parameters."""
        if self.stage == 0 and self._engine.is_gradient_accumulation_boundary():
            self._step_stage_0()
        else:
            self._engine.step()

    def _step_stage_0(self) -> None:
        """Stage 0 neither reports a norm nor checks for NaN: without gradients, nothing moves."""
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        self._stage0_norm = float(torch.nn.utils.get_total_norm(gradients))
        config = self._engine._config
        clip = config.gradient_clipping
        if not math.isfinite(self._stage0_norm):
            for parameter in self.module.parameters():
                parameter.grad = None
            config.gradient_clipping = 0.0  # it fails where there is nothing to clip
        self._engine.step()
        config.gradient_clipping = clip

    def rehearse(self, batch: Any) -> None:
        """A forward and backward pass of which nothing stays but peaks. All ranks call it.

        Moments that the first step will make are held meanwhile, so that the memory is a later
        step's.
        """
        # ZeRO-1 reduces at a boundary alone. With an offloaded optimizer a boundary's overflow
        # would outlive it.
        is_offloaded = "offload_optimizer" in self.settings["zero_optimization"]
        self._engine.set_gradient_accumulation_boundary(not is_offloaded)
        moments = self._coming_moments()
        try:
            loss_sum, losses = self._engine(batch)
            self._engine.backward(loss_sum / losses.numel())
        finally:
            self._engine._is_gradient_accumulation_boundary = None  # counted again
            del moments
        self._discard_gradients()

    def _coming_moments(self) -> list[torch.Tensor]:
        optimizer = self._optimizer if self.stage == 0 else self._optimizer.optimizer
        vectors = {id(vector): vector for _, _, _, vector, _ in self.pieces()}.values()
        return [
            torch.empty_like(vector)
            for vector in vectors
            if not optimizer.state.get(vector)
            for _ in MOMENTS
        ]

    def _discard_gradients(self) -> None:
        """As if no backward pass had been since the last step.

        DeepSpeed 0.19.8 clears all of this at a step alone, and there it is spread over its
        optimizers. ZeRO-3 begins its sums anew once its `zero_grad` has reset its count.
        """
        from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

        optimizer = self._optimizer
        optimizer.zero_grad(set_to_none=True)
        for parameter in self.module.parameters():
            parameter.grad = None
        if isinstance(optimizer, DeepSpeedZeroOptimizer):
            optimizer.micro_step_id = -1
            for sums in (optimizer.all_grad_tensors, optimizer.averaged_gradients):
                for group in sums:
                    sums[group] = None
            if optimizer.cpu_offload:
                optimizer.accumulated_grads_in_cpu.clear()
                optimizer._offload_accumulated_param_ids = set()

    def set_learning_rate(self, learning_rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_scale"]

    def result(self) -> StepResult:
        """How the step that just ended went."""
        if self.stage == 0:
            return StepResult(math.isfinite(self._stage0_norm), self._stage0_norm)
        norm = float(self._engine.get_global_grad_norm())
        scale = float(self._optimizer.loss_scale) if self.precision == "fp16" else None
        return StepResult(bool(self._engine.was_step_applied()), norm, scale)

    def train(self, mode: bool = True) -> None:
        self._engine.train(mode)

    def capture(self, folder: Path, tag: str, copies: HostCopies | None = None) -> Captured:
        """What a checkpoint holds, as it is now. All ranks call it; nothing is written yet.

        Args:
            folder: where the checkpoint will be; DeepSpeed puts NVMe-offloaded states there at
                once, for which it must exist.
            tag: of DeepSpeed's files.
            copies: takes them to host memory; None: they are the engine's own, to be written
                before the next step.

        Raises:
            OSError: the disk would not take states that lie on NVMe. Only after DeepSpeed's
                barriers: a rank that left early would leave the others waiting there.
        """
        if copies is not None:
            copies.begin()
        files: dict[str, Any] = {}

        def keep(state_dict: Any, path: str) -> None:
            name = str(Path(path).relative_to(folder))
            files[name] = state_dict if copies is None else copies.copy(state_dict)

        def nothing(*_: Any, **__: Any) -> None:
            """Folders come with the files; the weights need no script of DeepSpeed's to be read."""

        writer, problem = self._engine.checkpoint_engine, None
        replaced = [(writer, "save", keep), (writer, "makedirs", nothing)]
        replaced.append((self._engine, "_copy_recovery_script", nothing))
        for owner, name, function in replaced:
            setattr(owner, name, function)
        try:
            self._engine.save_checkpoint(str(folder), tag=tag, save_latest=False)
        except OSError as error:
            problem = error
            dist.barrier()  # DeepSpeed's last, which the other ranks have come to
        finally:
            for owner, name, _ in replaced:
                delattr(owner, name)  # the class's own is there again
        weights, averages = self.full_state_dict(copies), None
        if self.average is not None:
            with self.average.in_place():
                averages = self._trained_weights(copies)
        if copies is not None:
            copies.end()
        if problem is not None:
            raise problem
        return Captured(files, weights, averages)

    def load(self, folder: Path, tag: str) -> None:
        """Reads what `save` wrote at the same world size and with the same ZeRO settings."""
        self._engine.load_checkpoint(str(folder), tag=tag)

    def why_not_fill(self) -> str | None:
        """What stands against `fill`, or None."""
        zero = self.settings["zero_optimization"]
        for key in ("offload_optimizer", "offload_param"):
            if (zero.get(key) or {}).get("device") == "nvme":
                return f"{key} to nvme"
        return None

    @torch.no_grad()
    def fill(self, saved: SavedState, num_steps: int, num_skipped: int) -> None:
        """Takes over what other ranks or another ZeRO stage saved. All ranks call it, once built.

        Each rank reads the weights, which it holds whole under stages 0 to 2, and of moments what
        it keeps. Parameter groups are as the config made them.
        """
        from deepspeed.runtime.zero import GatheredParameters

        for name, parameter in self.module.named_parameters():
            # Under ZeRO-3, rank 0's value is what all ranks get.
            with GatheredParameters([parameter], modifier_rank=0, enabled=self.stage == 3):
                if self.stage < 3 or dist.rank() == 0:
                    parameter.copy_(saved.weight(name))
        optimizer = self._optimizer if self.stage == 0 else self._optimizer.optimizer  # AdamW
        for name, start, numel, vector, offset in self.pieces():
            vector.view(-1)[offset : offset + numel] = saved.weight(name).view(-1)[start:][:numel]
            state = optimizer.state[vector]
            if saved.step is None:
                state.clear()  # AdamW makes it at its first step
                continue
            if not state:
                state.update({key: torch.zeros_like(vector) for key in MOMENTS})
            state["step"] = torch.tensor(saved.step)  # each has one of its own
            for key in MOMENTS:
                run = saved.moment(name, key, start, numel)
                state[key].view(-1)[offset : offset + numel] = run
        if self.precision == "fp16":
            self._optimizer.loss_scaler = saved.loss_scaler
        self._engine.global_steps = num_steps
        self._engine.global_samples = num_steps * self.settings["train_batch_size"]
        self._engine.skipped_steps = num_skipped

    def pieces(self) -> Iterator[Piece]:
        """What this rank keeps in float32 of each trainable parameter."""
        optimizer = self._optimizer
        parameters: dict[str, Any] = dict(self.module.named_parameters())
        for name in self.trainable_sizes:
            parameter = parameters[name]
            if self.stage == 0:
                yield Piece(name, 0, parameter.numel(), parameter, 0)
            elif self.stage == 3:
                param_id = optimizer.get_param_id(parameter)
                group, offset, share = optimizer.grad_position[param_id]
                start = share * dist.rank()  # the last ranks' shares are padded
                numel = max(0, min(share, self.trainable_sizes[name] - start))
                vector = optimizer.fp32_partitioned_groups_flat[group]
                yield Piece(name, start, numel, vector, offset)
            elif (own := parameter._hp_mapping) is not None:
                vector = optimizer.param_groups[own.param_group_index]["params"][0]
                run = own.lp_fragment_address
                yield Piece(name, run.start, run.numel, vector, own.hp_fragment_address.start)

    def full_state_dict(self, copies: HostCopies | None = None) -> dict[str, torch.Tensor]:
        """float32 weights of the whole module, on the CPU; empty but on rank 0. All ranks call it.

        Under bf16 the true weights are the optimizer's fp32 copies, not the module's.

        Args:
            copies: takes them to host memory; None: on a CPU, some are the module's own.
        """
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_get_full_fp32_param

        weights = {}
        is_whole = self.stage == 0 or (self.stage < 3 and self.precision == "fp32")
        for name, parameter in self.module.named_parameters():
            is_own = is_whole or not parameter.requires_grad
            with GatheredParameters([parameter], enabled=is_own and self.stage == 3):
                value = parameter.detach() if is_own else safe_get_full_fp32_param(parameter)
                assert value is not None, name
                if dist.rank() != 0:
                    continue
                value = value.detach().float()
                if copies is not None and is_own and self.stage < 3 and self.precision == "fp32":
                    value = copies.copy(value)  # one copy for the module's states too
                elif copies is not None:
                    value = copies.copy_alone(value)
                weights[name] = value.cpu()
        return weights

    def _trained_weights(self, copies: HostCopies | None) -> dict[str, torch.Tensor]:
        """float32 masters of what is trained, as `full_state_dict` gives them."""
        from deepspeed.utils import safe_get_full_fp32_param

        weights = {}
        for name, parameter in self.module.named_parameters():
            if name not in self.trainable_sizes:
                continue
            value = parameter if self.stage == 0 else safe_get_full_fp32_param(parameter)
            assert value is not None, name
            if dist.rank() == 0:
                value = value.detach().float()
                weights[name] = (
                    value.clone() if copies is None else copies.copy_alone(value)
                ).cpu()
        return weights


def read_states(path: Path) -> Any:
    """A file of DeepSpeed's, memory-mapped; tensors, plain values and four classes, no code."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    known = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
    with torch.serialization.safe_globals(known):
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)


def _remove_stale_build_locks() -> None:
    """DeepSpeed compiles its operators at their first use, and a build that was killed leaves a
    lock for which torch's builder waits for ever, without a word.
    """
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    for lock in (*root.glob("*/lock"), *root.glob("*/*/lock")):
        with suppress(OSError):  # another job has removed it
            if time.time() - lock.stat().st_mtime > STALE_BUILD_SECONDS:
                lock.unlink()
                dist.say(f"mllm: {lock} was left by a build that was killed; removed")


def init_distributed(timeout_seconds: float = 1800.0) -> None:
    """Joins the process group that the environment describes.

    Args:
        timeout_seconds: of the watchdog; a collective is given a little longer, so that the
            watchdog, which knows more, speaks first. Also how long ranks wait for each other here.

    Raises:
        UserError: not all ranks came, or a machine has more of them than GPUs.
    """
    import deepspeed

    if torch.cuda.is_available():
        ranks_here, num_gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if ranks_here > num_gpus:
            raise UserError(
                f"{ranks_here} ranks on this machine, which has {num_gpus} GPUs; start at most "
                f"{num_gpus} on it"
            )
        torch.cuda.set_device(dist.local_rank())  # before the first collective
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    if dist.local_rank() == 0:
        _remove_stale_build_locks()
    try:
        deepspeed.init_distributed(
            dist_backend="nccl" if torch.cuda.is_available() else "gloo",
            timeout=timedelta(seconds=timeout_seconds + WATCHDOG_MARGIN_SECONDS),
            verbose=False,
        )
    except torch.distributed.DistError as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise UserError(
            f"the {dist.world_size()} ranks did not meet at {where} (MASTER_ADDR:MASTER_PORT): "
            f"{str(error).split('. ')[0]}; start all nodes with the same address and port, and "
            "let the network between them pass"
        ) from None
