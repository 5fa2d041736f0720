"""Makes `torch.compile` trace fastrnn's layers, which are instances of ``torch.nn.LSTM``, ``GRU`` or ``RNN``.

Dynamo does not trace instances of these three classes unless ``torch._dynamo.config.allow_rnn`` is set, because tracing
into torch's own forward unrolls the time loop. fastrnn's layers have no such loop: their forward is one traceable
operator. `allow_layers` therefore wraps the one method that reads the switch, ``VariableBuilder.wrap_module``, and sets
the switch while that method handles a layer of fastrnn, and only then. torch's own layers are treated as before.

Dynamo is slow to import, so the method is wrapped when its module is imported, by `torch.compile` or by
`torch.export`. If torch has no such method, it keeps its own behaviour: a graph break with torch's explanation.

Rejected: ``allow_rnn = True`` for the whole process, which changes how torch's own layers compile; and deriving from
``RNNBase`` only, with a ``__class__`` that reports ``torch.nn.LSTM`` to everything except dynamo. The latter was used
before. It broke ``issubclass``, metaclasses, tables by class, pickling by value and ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import functools
from typing import Any

from .._after_import import after_import

BUILDER = "torch._dynamo.variables.builder"


def allow_layers(layers: type) -> None:
    """Make dynamo trace instances of ``layers``, now or when it is imported."""
    after_import(BUILDER, functools.partial(_wrap_builder, layers))


def _wrap_builder(layers: type, builder: Any) -> None:
    """Set ``allow_rnn`` while ``VariableBuilder.wrap_module`` handles an instance of ``layers``."""
    variable_builder: Any = getattr(builder, "VariableBuilder", None)
    wrap_module = getattr(variable_builder, "wrap_module", None)
    if wrap_module is None or not hasattr(builder.config, "allow_rnn"):
        return

    @functools.wraps(wrap_module)
    def wrap_layers_too(self: Any, value: Any) -> Any:
        if not isinstance(value, layers):
            return wrap_module(self, value)
        with builder.config.patch(allow_rnn=True):
            return wrap_module(self, value)

    variable_builder.wrap_module = wrap_layers_too
