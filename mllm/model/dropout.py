"""Dropout whose masks are functions of keys: no generator, no state to keep, no order to mind.

A key is 64 bits for one row at one site of the model. The mask of a row there depends on nothing
else: not on the rows beside it, the device, or how often it is computed.

Letters: B rows, T positions, D model_dim.
"""

import torch
import torch.nn.functional as F

# splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014): numbers
# in steps of INCREMENT, each hashed by shifts and FACTORS. Bit patterns of int64, where products
# wrap around.
INCREMENT = 0x9E3779B97F4A7C15 - 2**64
FACTORS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


def _mix_(value: torch.Tensor) -> torch.Tensor:
    """splitmix64's hash, in place; int64 of any shape."""
    # The shift of int64 copies the sign: masked, it is the one of unsigned numbers.
    value ^= (value >> 30).bitwise_and_(2**34 - 1)
    value *= FACTORS[0]
    value ^= (value >> 27).bitwise_and_(2**37 - 1)
    value *= FACTORS[1]
    value ^= (value >> 31).bitwise_and_(2**33 - 1)
    return value


def site_keys(row_seeds: torch.Tensor, num_sites: int) -> torch.Tensor:
    """Row seeds int64 (B,) to the keys of every site, int64 (num_sites, B)."""
    sites = torch.arange(1, num_sites + 1, device=row_seeds.device)
    return _mix_(row_seeds + sites[:, None] * INCREMENT)


def dropout(
    hidden: torch.Tensor, rate: float, keys: torch.Tensor | None, *, is_training: bool
) -> torch.Tensor:
    """`hidden` with a share `rate` of its elements zero and the others scaled up to the same mean.

    The rate is rounded to a multiple of 2^-16: one hash of 64 bits decides four elements, which
    makes this as fast as torch's own on a CPU.

    Args:
        hidden: (B, T, D).
        rate: in 0 .. 1, without 1.
        keys: int64 (B,), one a row; None draws from torch's generator.
        is_training: False gives `hidden` itself.
    """
    if keys is None:
        return F.dropout(hidden, rate, is_training)
    threshold = min(round(rate * 2**16), 2**16 - 1)
    if threshold == 0 or not is_training:
        return hidden
    num_elements = hidden[0].numel()
    steps = torch.arange(-(-num_elements // 4), device=hidden.device) * INCREMENT
    numbers = _mix_(keys[:, None] + steps).view(torch.int16)[:, :num_elements]
    is_dropped = numbers.view(hidden.shape) < threshold - 2**15
    return hidden.masked_fill(is_dropped, 0.0) * (2**16 / (2**16 - threshold))
