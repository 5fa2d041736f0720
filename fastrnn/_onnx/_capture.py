"""Translation for torch.onnx.export(dynamo=True): a rule for the operator while the exporter traces."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode

from fastrnn._onnx import _translation


def _sequence_forward(mode: Any, operator: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # The first trace (pre_dispatch) captures a program that torch.export promises to keep as it is.
    if mode.pre_dispatch or not torch.onnx.is_in_onnx_export():
        return mode.__torch_dispatch__(operator, types, args, kwargs)
    with mode:
        return _translation.sequence_forward(*args, **kwargs)


torch.library.register_torch_dispatch("fastrnn::sequence_forward", ProxyTorchDispatchMode, _sequence_forward)
