"""Arguments of a cell's step: values accessed by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

_MEANING = {
    "x": "all gates of the input product",
    "r": "all recurrent products",
    "s": "all old states",
    "p": "all parameters",
}


class Names:
    """Values by name, as passed to the step: ``x.i``, ``s.c``; iterable in order."""

    def __init__(self, kind: str, names: Sequence[str], values: Sequence[Any], error: Callable[[str], Exception]):
        self.__dict__.update(zip(names, values, strict=True))
        self._kind, self._values, self._error, self._names = kind, tuple(values), error, tuple(names)

    def __iter__(self) -> Any:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, key: int | str) -> Any:
        return getattr(self, key) if isinstance(key, str) else self._values[key]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise self._error(f"{self._kind} has no {name!r}; it has {', '.join(self._names) or 'nothing'}")

    def whole(self) -> str:
        """Return the message that expects one of the values in place of the whole."""
        examples = " or ".join(f"{self._kind}.{name}" for name in self._names[:2])
        return f"{self._kind}: expected one of its values, {examples}, got {_MEANING[self._kind]}"

    def _raise(self, *others: Any) -> Any:
        raise self._error(self.whole())

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _raise
    __mod__ = __rmod__ = __floordiv__ = __rfloordiv__ = __pow__ = __rpow__ = __matmul__ = __rmatmul__ = _raise
    __neg__ = __abs__ = __lt__ = __le__ = __gt__ = __ge__ = _raise

    def __call__(self, *vectors: Any) -> Any:
        """Raise the error for ``r(v)`` in place of ``r.n(v)``."""
        if self._kind != "r":
            return self._raise()
        raise self._error(f"r(v): expected the product with one gate's matrix, r.{self._names[0]}(v), got a call of r")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given: list[Any] = [*args, *(kwargs or {}).values()]
        for a in given:  # torch.cat takes a list
            if isinstance(a, (list, tuple)):
                given += a
        return next(a for a in given if isinstance(a, Names))._raise()
