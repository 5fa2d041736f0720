"""Keyword-only arguments in calls by the TorchScript-based ONNX exporter."""

from __future__ import annotations

import inspect
from typing import Any

import torch


class ExportedKeywords:
    """Mixin, placed before `torch.nn.Module`, for modules whose forward has keyword-only arguments.

    torch.onnx.export(dynamo=False) passes all arguments of a model's forward by position: those of the caller, and the
    defaults of the others. The mixin passes them by name.
    """

    def _slow_forward(self: Any, *input: Any, **kwargs: Any) -> Any:
        """Call forward; torch.nn.Module calls this method only while tracing."""
        if torch.onnx.is_in_onnx_export():
            parameters = inspect.signature(self.forward).parameters.values()
            keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
            count = len(parameters) - len(keywords)
            kwargs = {**dict(zip(keywords, input[count:], strict=False)), **kwargs}
            input = input[:count]
        return super()._slow_forward(*input, **kwargs)  # type: ignore[misc]
