"""ONNX export: layers become the fused nodes LSTM, GRU and RNN where these mean the same, else a loop over time.

Nothing here is called by users, and nothing imports onnx: the translation is written in torch operations, which both
exporters of torch translate.

- `torch.onnx.export(dynamo=True)` first captures the operator ``fastrnn::sequence_forward``. The exporter then traces
  the captured program again to decompose it, and there the operator is replaced (`_capture`).
- ``dynamo=False`` traces the Python code, where `fastrnn.functional.sequence` calls `traced.sequence`.
"""

from __future__ import annotations

from fastrnn._onnx import _capture

__all__ = ["_capture"]
