"""The arguments of a cell's step: values by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

_MEANING = {
    "x": "the gates of the input product together",
    "r": "the recurrent products together",
    "s": "the old states together",
    "p": "the parameters together",
}


class Names:
    """Values by name, as the step sees them: ``x.i``, ``s.c``; also in order, to be unpacked."""

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
        """Return the message that one of the values is expected."""
        examples = " or ".join(f"{self._kind}.{name}" for name in self._names[:2])
        return f"{self._kind} is {_MEANING[self._kind]}: expected one of its values, {examples}"

    def _refused(self, *others: Any) -> Any:
        raise self._error(self.whole())

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refused
    __mod__ = __rmod__ = __floordiv__ = __rfloordiv__ = __pow__ = __rpow__ = __matmul__ = __rmatmul__ = _refused
    __neg__ = __abs__ = __lt__ = __le__ = __gt__ = __ge__ = _refused

    def __call__(self, *vectors: Any) -> Any:
        """``r(v)``, where ``r.n(v)`` is meant."""
        if self._kind != "r":
            return self._refused()
        raise self._error(f"r(v): expected the product with the matrix of one gate, r.{self._names[0]}(v)")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given: list[Any] = [*args, *(kwargs or {}).values()]
        for a in given:  # torch.cat has them in a list
            if isinstance(a, (list, tuple)):
                given += a
        return next(a for a in given if isinstance(a, Names))._refused()
