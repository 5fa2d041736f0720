"""How a fastrnn layer is a ``torch.nn.LSTM`` to everybody but the compiler.

Code that initialises, quantises or counts modules asks ``isinstance(m, torch.nn.LSTM)`` and must find ours. The
compiler asks the same question in order to refuse: ``torch._dynamo`` does not trace instances of ``nn.LSTM``,
``nn.GRU`` and ``nn.RNN``, so that a true subclass could never be compiled with ``fullgraph=True``, although its forward
is one traceable operator. The two wishes contradict each other, as ``isinstance`` answers yes for a true subclass
whoever asks.

The way out is the second half of ``isinstance``: it looks at ``type(m)`` and, failing that, at ``m.__class__``. Our
classes derive from ``nn.RNNBase`` only, and the property `TorchIdentity.__class__` answers a *face*: a class made once
for each concrete class, with ``nn.LSTM`` in its method resolution order. Frames of ``torch._dynamo`` see the concrete
class itself.

Nobody is meant to notice the face, hence it behaves as its concrete class in all that is done with ``m.__class__``:

================================================  ====================================================================
``m.__class__(...)``                              makes an object of the concrete class
``m.__class__ == type(m)``, as dictionary keys    equal, same hash
``isinstance(x, m.__class__)``, ``issubclass``    as with the concrete class
``m.__class__.x = v``, ``del``, ``vars``, ``dir``  those of the concrete class
``m.__class__.__bases__``                         those of the concrete class, then ``nn.LSTM``
``class C(m.__class__)``, ``type("C", (…), {})``  derives from the concrete class (`torch.nn.utils.parametrize`, FSDP)
``m.__class__ = C``                               changes the type of the object, as always
``super(m.__class__, m)``                         the parent's methods (the concrete class stands before its face)
``pickle.dumps(m.__class__)``                     the concrete class, by its name
================================================  ====================================================================

What remains different: ``issubclass(fastrnn.LSTM, torch.nn.LSTM)`` is False (with ``m.__class__`` it is True), and so
is ``isinstance(m, torch.nn.LSTM)`` where the compiler itself evaluates it, inside a compiled function.

Rejected: a true subclass with ``torch._dynamo.config.allow_rnn = True`` (a process-wide switch, which would have the
compiler unroll the user's own ``nn.LSTM`` too); hiding from ``isinstance`` while any compilation is under way (other
threads, and the user's code that runs during it, would be answered wrongly).
"""

from __future__ import annotations

import copyreg
import sys
from typing import Any

from torch import nn

FACE = "_torch_face"  # where a concrete class keeps its face: on itself, so that both go together
_set_type = object.__dict__["__class__"].__set__
_namespace = type.__dict__["__dict__"].__get__  # the true `__dict__` of a class, past _FaceMeta's own


def concrete(cls: type) -> type:
    """The class itself, or the one whose face it is."""
    return _namespace(cls)["_concrete"] if isinstance(cls, _FaceMeta) else cls


class _Quiet:
    """Keeps the making of a face from calling the user's ``__init_subclass__``."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        pass


class _FaceMeta(type):
    """The type of faces: sends to the concrete class whatever would tell the two apart."""

    def __new__(meta, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **kwargs: Any) -> type:
        """A class derived from a face becomes one derived from the concrete class. (`face_of` makes faces, past this
        method.)
        """
        bases = tuple(concrete(base) for base in bases)
        namespace.setdefault("__module__", sys._getframe(1).f_globals.get("__name__", __name__))
        return type(bases[0])(name, bases, namespace, **kwargs)

    def mro(cls) -> list[type]:
        real = _namespace(cls)["_concrete"]
        order = list(real.__mro__)
        base = order.index(nn.RNNBase)
        # nn.LSTM stands behind all of ours, so that none of its methods hides one of ours.
        return [real, cls, _Quiet, *order[1:base], real._torch_class, *order[base:]]

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return concrete(cls)(*args, **kwargs)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, concrete(cls))

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(concrete(subclass), concrete(cls))

    def __setattr__(cls, name: str, value: Any) -> None:
        setattr(concrete(cls), name, value)

    def __delattr__(cls, name: str) -> None:
        delattr(concrete(cls), name)

    @property  # type: ignore[misc]
    def __dict__(cls) -> Any:  # type: ignore[override]
        return concrete(cls).__dict__

    def __dir__(cls) -> list[str]:
        return dir(concrete(cls))

    def __eq__(cls, other: object) -> bool:
        return isinstance(other, type) and concrete(other) is concrete(cls)

    def __hash__(cls) -> int:
        return hash(concrete(cls))

    def __repr__(cls) -> str:
        return repr(concrete(cls))


def _pickle_face(face: type) -> tuple[Any, tuple[type]]:
    return concrete, (concrete(face),)


copyreg.pickle(_FaceMeta, _pickle_face)


def face_of(real: Any) -> type:
    """The face of a concrete class, made at the first call."""
    face = _namespace(real).get(FACE)
    if face is None:
        meta: Any = _FaceMeta
        if type(real) is not type:  # the user's subclass has a metaclass of its own (ABCMeta, say)
            meta = type.__new__(type, "_FaceMeta", (_FaceMeta, type(real)), {})
            copyreg.pickle(meta, _pickle_face)
        names = {key: getattr(real, key) for key in ("__module__", "__qualname__", "__doc__")}
        face = type.__new__(meta, real.__name__, (*real.__bases__, real._torch_class), {**names, "_concrete": real})
        type.__setattr__(real, FACE, face)
    return face


def _get_class(self: TorchIdentity) -> type:
    real = type(self)
    if sys._getframe(1).f_globals.get("__name__", "").startswith("torch._dynamo"):
        return real
    return face_of(real)


def _change_class(self: TorchIdentity, cls: type) -> None:
    _set_type(self, concrete(cls))


class TorchIdentity:
    """Mixin, before ``nn.RNNBase``, of a class that is to pass for the one of ``torch.nn`` in ``_torch_class``."""

    _torch_class: type[nn.RNNBase]

    __class__ = property(_get_class, _change_class)

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        # `m.__new__(m.__class__)` is how copies of parametrized modules come about. No zero-argument super() in this
        # class body: the name `__class__`, which it needs, is taken.
        return super(TorchIdentity, concrete(cls)).__new__(concrete(cls))  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """As that of ``object``, which refuses where ``__class__`` is not the type. Names the standard library only."""
        if type(self).__reduce__ is not object.__reduce__:
            return self.__reduce__()
        return copyreg._reconstructor, (type(self), object, None), self.__getstate__()  # type: ignore[attr-defined]
