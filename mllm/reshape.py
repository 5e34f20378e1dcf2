"""Another number of ranks or another ZeRO stage: what a checkpoint holds, found by parameter.

Weights come from `model.safetensors`: float32, whole, frozen ones included. AdamW's moments lie in
one file a rank, there in flat vectors of which every parameter has a piece. Here the pieces of all
old ranks are found by name; `Engine.fill` says which pieces the new rank keeps and copies those.
The files are memory-mapped: a rank reads what it keeps, one piece at a time, and nothing is
written, so no disk fills up and a crash leaves nothing behind. Nor are the old parameter groups
needed: lr and decay of each group come from the config, which may not change them.

DeepSpeed's universal files were the other way. They are a second copy of the states, several files
for each parameter and rank, made before training starts; stage 0 cannot be converted; 1 <-> 3 needs
their global files rewritten; the load into ZeRO-3 puts the first group's lr and decay on every
group and shares one step counter among parameters; frozen weights are not in them. Nor is its
`safe_get_full_optimizer_state` of use: under ZeRO 1 and 2 it knows the first group only (0.19.8).

The files are pickles, read as data (`weights_only`) with the few classes that `engine.py` names.
"""

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mllm.errors import UserError

MOMENTS = ("exp_avg", "exp_avg_sq")
# Of a parameter, as one rank keeps it: name, offset in the flat vectors, elements, AdamW's state,
# whose float32 moments are those vectors.
Piece = tuple[str, int, int, dict[str, torch.Tensor]]


class SavedState:
    """Weights and moments of a checkpoint by parameter name, in float32 on the CPU.

    Args:
        checkpoint: its folder.
        states: the folder in it that DeepSpeed wrote.
        world_size: ranks that wrote it.
        zero_stage: ZeRO stage under which they did.
        sizes: elements of each trainable parameter. The order is that of the optimizer's groups,
            because stage 0 saves moments without names.
        read: path of a DeepSpeed file to its content, memory-mapped.

    Raises:
        UserError: a file is missing, cannot be read or has not the moments of each parameter.
    """

    def __init__(
        self,
        checkpoint: Path,
        states: Path,
        world_size: int,
        zero_stage: int,
        sizes: dict[str, int],
        read: Callable[[Path], Any],
    ):
        self.step: float | None = None  # AdamW's count of updates; None: never stepped
        self.loss_scaler: Any = None  # fp16's
        # Runs of each flattened parameter, in order: ranks keep consecutive ones.
        self._runs: dict[str, list[dict[str, torch.Tensor]]] = {name: [] for name in sizes}
        as_before = f"start it with {world_size} ranks and zero.stage {zero_stage}"
        path = checkpoint / "model.safetensors"
        try:
            self._weights = safe_open(path, framework="pt")
            if zero_stage == 0:
                path = states / "mp_rank_00_model_states.pt"
                self._add(_pieces_of_stage_0(read(path)["optimizer"]["state"], sizes))
            shapes = []
            if zero_stage == 3:
                path = states / "zero_pp_rank_0_mp_rank_00_model_states.pt"
                shapes = read(path)["param_shapes"]
            for rank in range(world_size if zero_stage else 0):
                path = states / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
                if not path.exists():
                    path = path.with_name(f"bf16_{path.name}")
                content = read(path)["optimizer_state_dict"]
                self.loss_scaler = content.get("loss_scaler")
                if zero_stage == 3:
                    self._add(_pieces_of_stage_3(content, shapes, rank, world_size))
                else:
                    self._add(_pieces_of_stages_1_and_2(content))
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: cannot be read ({error}); {as_before}") from None
        except (KeyError, TypeError, IndexError, RuntimeError, pickle.UnpicklingError) as error:
            reason = f"{type(error).__name__} {error}".splitlines()[0]
            raise UserError(
                f"{path}: not as DeepSpeed writes ZeRO-{zero_stage} here ({reason}); {as_before}"
            ) from None
        for name, size in sizes.items():
            found = sum(len(run["exp_avg"]) for run in self._runs[name])
            if found != (0 if self.step is None else size):
                raise UserError(
                    f"{states}: {name} has {size} elements, moments are there of {found}; the "
                    f"model is not the one that was saved, or a file is of another run: {as_before}"
                )

    def _add(self, pieces: Iterator[Piece]) -> None:
        for name, offset, numel, state in pieces:
            self.step = float(state["step"])  # one for all: a step is applied to all or skipped
            run = {key: state[key].view(-1).narrow(0, offset, numel) for key in MOMENTS}
            self._runs[name].append(run)

    def weight(self, name: str) -> torch.Tensor:
        """float32, a whole parameter in its shape, be it frozen or not."""
        return self._weights.get_tensor(name.removeprefix("model."))  # the objective's one module

    def moment(self, name: str, key: str, start: int, numel: int) -> torch.Tensor:
        """float32 (numel,): elements from `start` on of a flattened moment."""
        parts, begin = [], 0
        for run in self._runs[name]:
            end = begin + len(run[key])
            parts.append(run[key][max(0, start - begin) : max(0, min(start + numel, end) - begin)])
            begin = end
        return torch.cat(parts)


def _pieces_of_stage_0(states: dict[int, Any], sizes: dict[str, int]) -> Iterator[Piece]:
    for index, (name, size) in enumerate(sizes.items()):
        if index in states:
            yield name, 0, size, states[index]


def _pieces_of_stages_1_and_2(content: dict[str, Any]) -> Iterator[Piece]:
    """One flat vector a group; where each parameter lies in it is saved."""
    states = content["base_optimizer_state"]["state"]
    for group, places in enumerate(content["param_slice_mappings"]):
        if group in states:
            for name, place in places.items():
                yield name, place.start, place.numel, states[group]


def _pieces_of_stage_3(
    content: dict[str, Any], shapes: list[dict[str, torch.Size]], rank: int, world_size: int
) -> Iterator[Piece]:
    """One flat vector a sub-group: an equal share of each parameter, padded at the last ranks."""
    states = content["optimizer_state_dict"]["state"]
    for group, members in enumerate(shapes):
        offset = 0
        for name, shape in members.items():
            share = -(-shape.numel() // world_size)
            if group in states:
                held = max(0, min(share, shape.numel() - rank * share))
                yield name, offset, held, states[group]
            offset += share
