"""ONNX export: a layer becomes an LSTM, GRU or RNN node if ONNX has an equivalent one, else a loop over time.

Users call nothing here, and nothing here imports onnx: the translation consists of torch operations that both of
torch's exporters support.

- ``torch.onnx.export(dynamo=True)`` first captures the operator ``fastrnn::sequence_forward``. The exporter then traces
  the captured program a second time to decompose it, and there `_capture` replaces the operator.
- ``dynamo=False`` traces the Python code, in which `fastrnn.functional.sequence` calls `traced`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastrnn._call import Call
from fastrnn._onnx import (
    _capture,  # noqa: F401 - registers the rule for the operator
    _translation,
)


def replaces_operator(weight: Tensor) -> bool:
    """Return True in torch.onnx.export(dynamo=True), which needs no kernels of a cell, and so none are compiled."""
    return torch.onnx.is_in_onnx_export() and weight.is_floating_point()


def traced(call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Replace a layer's call while the TorchScript exporter traces.

    Raises:
        ValueError: the input is packed.
    """
    if call.batch_sizes is not None:
        raise ValueError(
            "batch_sizes: expected None in torch.onnx.export(dynamo=False), got packed input; pass padded input with "
            "lengths=, or export with dynamo=True"
        )
    return _translation.layer(call)
