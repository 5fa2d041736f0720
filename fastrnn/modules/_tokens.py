"""The keyword ``embedding=`` of the modules: ids as input, embedded by a module or by a weight matrix.

A plain `torch.nn.Embedding` is nothing but its matrix, which the layer may then multiply once instead of at every step
(`fastrnn._tokens`). Anything else that an embedding does (hooks, a forward of its own, parametrised weights, rows
renormalised in place, sparse or scaled gradients) is left to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from .. import _tokens
from .._call_checks import check_devices
from .._surroundings import is_compiling, is_of_compiler
from . import _checks

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Form(NamedTuple):
    """How ids lie: (N) with ``batch_sizes``; else (T), (T, B), or (B, T) if ``batch_first``."""

    batch_first: bool = False
    lengths: Any = None
    batch_sizes: Tensor | None = None

    def dims(self) -> tuple[tuple[int, ...], str]:
        """The allowed numbers of dimensions, and in words."""
        if self.batch_sizes is not None:
            return (1,), "(N) in a PackedSequence"
        return (1, 2), "(T) or (B, T)" if self.batch_first else "(T) or (T, B)"

    def padding(self, ids: Tensor) -> Tensor:
        """Where the ids are after the end of their row."""
        swap = self.batch_first and ids.dim() == 2
        steps, batch = (ids.shape[0], 1) if ids.dim() == 1 else ids.shape[:: -1 if swap else 1]
        lengths = _checks.as_lengths(self.lengths, steps, batch, ids.device)
        mask = torch.arange(steps, device=ids.device).unsqueeze(1) >= lengths
        return mask.t() if swap else mask.view(ids.shape)


def read(
    module: Any,
    ids: Any,
    embedding: Any,
    form: Form,
    states: tuple[Tensor, ...] | None,
    weights: Sequence[Any] | None,
) -> tuple[Any, Tensor | None]:
    """What a network is to be fed with: the embedded ids (…, I) and None; or ids (…, 1) and a matrix (V, I) in which to
    look them up, which is only done if the network's ``weights`` are given. Raises as `checked`.
    """
    ids = checked(ids, embedding, *form.dims(), form)
    matrix = None if weights is None else _matrix_of(embedding)
    if matrix is not None and weights is not None and _is_certain(ids, matrix, states, weights):
        if matrix.shape[1] != module.input_size:
            raise RuntimeError(
                f"embedding: expected rows of the width input_size, {module.input_size}, got {tuple(matrix.shape)}"
            )
        fits = module._fits((*ids.shape, module.input_size), states, form)
        if fits and _tokens.pays(ids, matrix, weights):
            return ids.unsqueeze(-1), _rows_of(embedding, matrix)
    return look_up(ids, embedding), None


def checked(ids: Any, embedding: Any, dims: tuple[int, ...], words: str, form: Form | None = None) -> Any:
    """The ids, known to be of the right kind, except for what only a module of the user's own can judge.

    Args:
        ids: of ``dims`` dimensions, in ``words``.
        embedding: a module, or a matrix (V, I).
        form: how they lie, if some may be padding.

    Raises:
        TypeError: ids are no tensor, or ``embedding`` is neither module nor matrix.
        ValueError: ids have other dimensions.
        RuntimeError: ids are not integers.
        IndexError: an id is not in 0…V-1.
    """
    if not isinstance(embedding, nn.Module) and not (isinstance(embedding, Tensor) and embedding.dim() == 2):
        got = f"shape {tuple(embedding.shape)}" if isinstance(embedding, Tensor) else type(embedding).__name__
        raise TypeError(f"embedding: expected a torch.nn.Embedding or a matrix (V, I), got {got}")
    if isinstance(ids, Proxy):
        return ids
    if not isinstance(ids, Tensor):
        raise TypeError(f"input: expected a tensor of ids with embedding=, got {type(ids).__name__}")
    if ids.dim() not in dims:
        raise ValueError(f"input: expected ids of shape {words} with embedding=, got {tuple(ids.shape)}")
    _tokens.check_ids(ids, "input")
    if isinstance(embedding, nn.Module):
        if not _is_torchs(embedding):
            return ids  # it may know what to do with any number
        embedding = embedding.weight
    check_devices(ids, {"embedding": embedding})
    padding = None if form is None or form.lengths is None else lambda: form.padding(ids)
    return _tokens.within(ids, embedding.shape[0], padding, "input")


def embed_step(ids: Any, embedding: Any) -> Any:
    """The embedded ids (B, I) or (I) of a single step. Raises as `checked`."""
    return look_up(checked(ids, embedding, (0, 1), "() or (B)"), embedding)


def look_up(ids: Any, embedding: Any) -> Any:
    """The embedded ids (…, I)."""
    return embedding(ids) if isinstance(embedding, nn.Module) else F.embedding(ids, embedding)


def _matrix_of(embedding: Any) -> Tensor | None:
    """The matrix (V, I), if looking rows up in it is all that ``embedding`` does."""
    if not isinstance(embedding, nn.Module):
        return embedding
    if not _is_torchs(embedding) or any(len(getattr(embedding, name)) for name in _HOOKS) or _has_global_hooks():
        return None
    own: Any = embedding
    changes = own.max_norm is not None or own.scale_grad_by_freq or own.sparse
    return None if changes else own.weight


def _rows_of(embedding: Any, matrix: Tensor) -> Tensor:
    """The matrix as ids would find it: what comes back to the row of ``padding_idx`` is lost."""
    padding = None if isinstance(embedding, Tensor) else embedding.padding_idx
    if padding is None or not torch.is_grad_enabled():
        return matrix
    return F.embedding(torch.arange(matrix.shape[0], device=matrix.device), matrix, padding)


def _is_certain(ids: Any, matrix: Tensor, states: Sequence[Any] | None, weights: Sequence[Any]) -> bool:
    """Whether the kernels can take all of it: see `_checks.are_plain`. Under autocast the formats differ."""
    if not _checks.are_plain(matrix, states, weights) or _checks.autocast_dtype(matrix) is not None:
        return False
    ordinary = type(ids) is Tensor or is_of_compiler(ids)
    return ordinary and ids.device == matrix.device and ids.layout is torch.strided


def _is_torchs(embedding: nn.Module) -> bool:
    return type(embedding) is nn.Embedding and "forward" not in embedding.__dict__


def _has_global_hooks() -> bool:
    return not is_compiling() and nn.modules.module._has_any_global_hook()
