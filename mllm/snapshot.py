"""Copies of a training state in host memory, so that training goes on while they are written."""

import copy
from typing import Any

import torch

PINNED_FROM = 1 << 20  # bytes; smaller buffers are not worth the time that pinning takes


class HostCopies:
    """Copies nested states as they are at one moment, into buffers that the next time reuses.

    Whole storages are copied, each once, so that what shares memory goes on sharing it and files
    written from the copies are those that the originals would give. Making pages costs more than
    filling them, which is why the buffers stay.
    """

    def __init__(self) -> None:
        self._idle: dict[int, list[torch.UntypedStorage]] = {}  # by bytes
        # By device, address and bytes: the original, held so that its address stays its own, and
        # its copy.
        self._copied: dict[tuple[str, int, int], list[torch.UntypedStorage]] = {}
        self._alone: list[torch.UntypedStorage] = []

    def begin(self) -> None:
        """A new moment: earlier copies are no longer needed."""
        for buffer in [*self._alone, *(pair[1] for pair in self._copied.values())]:
            self._idle.setdefault(buffer.nbytes(), []).append(buffer)
        self._copied, self._alone = {}, []

    def end(self) -> None:
        """Returns once the copies are whole; from then on the originals may change."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._idle = {}
        for pair in self._copied.values():
            pair[0] = pair[1]  # lets go of originals that were made for this moment only

    def copy(self, value: Any) -> Any:
        """A copy of tensors in dicts, lists and tuples, and of whatever else is there."""
        if isinstance(value, torch.Tensor):
            return self._view(value, self._shared(value.untyped_storage()))
        if isinstance(value, dict):
            result = copy.copy(value)  # of its class, with what it carries beside its items
            for key, item in value.items():
                result[key] = self.copy(item)
            return result
        if isinstance(value, list) or type(value) is tuple:
            return type(value)(map(self.copy, value))
        return copy.deepcopy(value)

    def copy_alone(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of a tensor that is made for the copy and dropped: its address may come again."""
        tensor = tensor.detach().contiguous()
        buffer = self._buffer(tensor.nbytes, tensor.is_cuda)
        self._alone.append(buffer)
        result = torch.empty(0, dtype=tensor.dtype).set_(buffer, 0, tensor.shape)  # type: ignore
        return result.copy_(tensor, non_blocking=True)

    def _shared(self, storage: torch.UntypedStorage) -> torch.UntypedStorage:
        key = (str(storage.device), storage.data_ptr(), storage.nbytes())
        if key not in self._copied:
            buffer = self._buffer(storage.nbytes(), storage.is_cuda)
            buffer.copy_(storage, non_blocking=True)
            self._copied[key] = [storage, buffer]
        return self._copied[key][1]

    def _view(self, tensor: torch.Tensor, storage: torch.UntypedStorage) -> torch.Tensor:
        place = (tensor.storage_offset(), tensor.size(), tensor.stride())
        return torch.empty(0, dtype=tensor.dtype).set_(storage, *place)  # type: ignore[arg-type]

    def _buffer(self, num_bytes: int, is_pinned: bool) -> torch.UntypedStorage:
        if idle := self._idle.get(num_bytes):
            return idle.pop()
        is_pinned = is_pinned and num_bytes >= PINNED_FROM
        buffer = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=is_pinned)
        return buffer.untyped_storage()
