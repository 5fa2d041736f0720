"""Keyword-only arguments in calls that the TorchScript exporter to ONNX makes."""

from __future__ import annotations

import inspect
from typing import Any

import torch


class ExportedKeywords:
    """Mixin, before `torch.nn.Module`, of modules whose forward has keyword-only arguments.

    torch.onnx.export(dynamo=False) gives a model all arguments of its forward by position: those of the caller, and the
    defaults of the others. Here they get their names back.
    """

    def _slow_forward(self: Any, *input: Any, **kwargs: Any) -> Any:
        """torch.nn.Module's, which calls forward while a trace is made, and never otherwise."""
        if torch.onnx.is_in_onnx_export():
            parameters = inspect.signature(self.forward).parameters.values()
            keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
            count = len(parameters) - len(keywords)
            kwargs = {**dict(zip(keywords, input[count:], strict=False)), **kwargs}
            input = input[:count]
        return super()._slow_forward(*input, **kwargs)  # type: ignore[misc]
