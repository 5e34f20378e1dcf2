"""The batches of a step as one block of memory, for the way between two processes.

One block is one file descriptor and one mapping, however many tensors a step has: a tensor each
would reach the limit of open files with many micro-steps. What goes through the queue beside it is
a few hundred bytes, below the size that a pipe writes whole, so a worker killed in the middle of
its message cannot leave half of one.
"""

import pickle
from dataclasses import fields
from typing import Any

import torch

ALIGNMENT = 64  # bytes; of each tensor in the block
LENGTH_BYTES = 8  # the header's length, at the end of the block


class Parcel:
    """Batches of one step, packed. Tensors of an unpacked batch are views of the block."""

    def __init__(self, block: torch.Tensor) -> None:
        self.block = block  # uint8 (bytes,)

    def pin_memory(self) -> "Parcel":
        """The same in page-locked memory; DataLoader's pinning thread calls it."""
        return Parcel(self.block.pin_memory())

    def unpack(self) -> Any:
        """What `pack` was given."""
        end = len(self.block) - LENGTH_BYTES
        length = int.from_bytes(bytes(self.block[end:].numpy()), "little")
        # Bytes that our own worker wrote a moment ago, not a file.
        header = pickle.loads(bytes(self.block[end - length : end].numpy()))
        if not isinstance(header, list):
            return header
        return [
            kind(
                **others,
                **{
                    name: self.block[start:stop].view(dtype).view(shape)
                    for name, (start, stop, dtype, shape) in places.items()
                },
            )
            for kind, places, others in header
        ]


def pack(batches: Any, *, shared: bool) -> Parcel:
    """Copies the tensors of a list of batch dataclasses into one block, shared memory if asked.

    Anything but a list travels as it is, pickled.
    """
    header: Any = batches
    tensors: list[tuple[int, torch.Tensor]] = []
    size = 0
    if isinstance(batches, list):
        header = []
        for batch in batches:
            values = {field.name: getattr(batch, field.name) for field in fields(batch)}
            places = {}
            for name, value in values.items():
                if isinstance(value, torch.Tensor):
                    stop = size + value.numel() * value.element_size()
                    places[name] = (size, stop, value.dtype, value.shape)
                    tensors.append((size, value))
                    size = -(-stop // ALIGNMENT) * ALIGNMENT
            others = {name: value for name, value in values.items() if name not in places}
            header.append((type(batch), places, others))
    tail = pickle.dumps(header)
    tail += len(tail).to_bytes(LENGTH_BYTES, "little")
    block = _empty(size + len(tail), shared=shared)
    for start, tensor in tensors:
        flat = tensor.contiguous().view(-1).view(torch.uint8)
        block[start : start + len(flat)] = flat
    block[size:] = torch.frombuffer(bytearray(tail), dtype=torch.uint8)
    return Parcel(block)


def _empty(num_bytes: int, *, shared: bool) -> torch.Tensor:
    if not shared:
        return torch.empty(num_bytes, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(num_bytes)  # as DataLoader's own collation does
    return torch.empty(0, dtype=torch.uint8).set_(storage)
