"""ONNX export: layers become the fused nodes LSTM, GRU and RNN where these mean the same, else a loop over time.

Nothing here is called by users, and nothing imports onnx: the translation is written in torch operations, which both
exporters of torch translate.

- `torch.onnx.export(dynamo=True)` first captures the operator ``fastrnn::sequence_forward``. The exporter then traces
  the captured program again to decompose it, and there the operator is replaced (`_capture`).
- ``dynamo=False`` traces the Python code, where `fastrnn.functional.sequence` calls `traced`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastrnn._onnx import _capture, _translation

__all__ = ["_capture", "traced"]


def traced(
    cell: str, x: Tensor, weights: Any, states: tuple[Tensor, ...], batch_sizes: Tensor | None, *layout: Any
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`fastrnn.functional.sequence` while an exporter traces; ``layout`` is lengths, reset and reverse.

    Raises:
        ValueError: the input is packed.
    """
    if batch_sizes is not None:
        raise ValueError(
            "batch_sizes: expected None in torch.onnx.export(dynamo=False), got packed input; give padded input with "
            "lengths=, or export with dynamo=True"
        )
    return _translation.layer(cell, x, weights, states or None, *layout)
