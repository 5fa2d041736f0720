"""Conversion of packed input to padded input, which ONNX's nodes and loops take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Rows:
    """Positions of packed rows (N, ·) in padded input (T, B, ·)."""

    def __init__(self, batch_sizes: Tensor, x: Tensor, states: tuple[Tensor, ...]):
        batch: Any = states[0].shape[0] if states else batch_sizes[0].item()
        torch._check(batch >= 0)
        sizes = batch_sizes.to(x.device)
        row = torch.arange(batch, device=x.device)
        self.lengths = (row.unsqueeze(-1) < sizes).sum(-1)
        self._starts = sizes.cumsum(0) - sizes  # of each step, among the packed rows
        self._at = (self._starts.unsqueeze(-1) + row).clamp(max=x.shape[0] - 1)  # (T, B)
        self._steps, self._batch, self._count = sizes.shape[0], batch, x.shape[0]

    def pad(self, x: Tensor) -> Tensor:
        """Pad (N, I) to (T, B, I). The padding holds arbitrary rows."""
        return x[self._at]

    def pack(self, y: Tensor) -> Tensor:
        """Pack (T, B, P) to (N, P)."""
        packed = torch.arange(self._count, device=y.device)
        step = (packed.unsqueeze(-1) >= self._starts).sum(-1) - 1
        return y.flatten(0, 1)[step * self._batch + packed - self._starts[step]]
