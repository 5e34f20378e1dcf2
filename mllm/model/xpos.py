"""xPos: rotary positions whose queries and keys also decay with distance (arXiv 2212.10554).

Letters: B rows, T positions, H heads, K head_dim.
"""

import torch

BASE = 10000.0
GAMMA = 0.4  # the paper's g: zeta runs from 0.2857 to nearly 1
SCALE_BASE = 512.0  # positions over which zeta is applied once


def zeta(head_dim: int, device: torch.device) -> torch.Tensor:
    """The decay of each channel over SCALE_BASE positions, float32 (K,); pairs share theirs."""
    even = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    return ((even + GAMMA) / (1 + GAMMA)).repeat_interleave(2)


class XPos:
    """cos and sin factors of a set of positions, scales multiplied in.

    With r = m - n, score(m, n) = sum_i zeta_i^(r/512) * [(q2i k2i + q2i+1 k2i+1) cos(r theta_i)
    - (q2i+1 k2i - q2i k2i+1) sin(r theta_i)]: only r matters, so the exponent's origin is free, if
    query and key have the same. It is fixed (half the trained length) rather than taken from the
    input, so that rotated keys can be cached. At 2,048 positions exponents stay within 2, factors
    within [0.08, 12.3].
    """

    def __init__(
        self,
        positions: torch.Tensor,
        *,
        head_dim: int,
        centre: int | torch.Tensor,
        dtype: torch.dtype,
    ):
        """
        Args:
            positions: int64 (B, T), restarting at 0 with each document.
            head_dim: K.
            centre: origin of the scale's exponent, one or int64 (B, T); the same for a position in
                every call of one model.
            dtype: of the factors. They are computed in float32 and cast last.
        """
        even = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
        theta = BASE**-even  # (K/2,)
        angle = positions[..., None].float() * theta  # (B, T, K/2)
        # Interleaved pairs (2i, 2i+1) share a factor; Llama's half-split layout is another.
        cos = angle.cos().repeat_interleave(2, -1)[:, :, None]  # (B, T, 1, K)
        sin = angle.sin().repeat_interleave(2, -1)[:, :, None]
        exponent = (positions - centre).float() / SCALE_BASE  # (B, T)
        scale = (zeta(head_dim, positions.device) ** exponent[..., None])[:, :, None]
        self.query = ((cos * scale).to(dtype), (sin * scale).to(dtype))
        self.key = ((cos / scale).to(dtype), (sin / scale).to(dtype))

    def rotate(self, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotates and scales query and key, both (B, T, H, K)."""
        return _rotate(query, *self.query), _rotate(key, *self.key)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    pairs = x.unflatten(-1, (-1, 2))
    turned = torch.stack((-pairs[..., 1], pairs[..., 0]), -1).flatten(-2)
    return x * cos + turned * sin
