"""Detection of an `autograd.Function` in a cell's step, whose backward the kernels would not call."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from torch.autograd import Function

_LOCK = threading.RLock()


@contextlib.contextmanager
def intercepted(on_call: Callable[[str, Any], None]) -> Iterator[None]:
    """Call `on_call` with the name and each argument of every ``.apply`` inside the context, in any thread.

    torch passes arguments that are not tensors to ``forward`` unchanged, without a hook, so `Function.apply` itself is
    the only place to intercept the call.
    """
    with _LOCK:
        usual = Function.__dict__["apply"]

        def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
            for argument in (*args, *kwargs.values()):
                on_call(cls.__name__, argument)
            return usual.__get__(None, cls)(*args, **kwargs)

        Function.apply = classmethod(apply)  # type: ignore[assignment,method-assign]
        try:
            yield
        finally:
            Function.apply = usual  # type: ignore[method-assign]
