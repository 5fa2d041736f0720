"""The keyword ``embedding=`` of the modules: ids as input, embedded by a module or by a weight matrix.

A plain `torch.nn.Embedding` is equivalent to its matrix, which the layer may multiply once instead of at every time
step (`fastrnn._tokens`). An embedding with anything else (hooks, its own forward, parametrised weights, rows
renormalised in place, sparse or scaled gradients) is called as a module.
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


class CallerLayout(NamedTuple):
    """Layout of ids: (N) with ``batch_sizes``; else (T), (T, B), or (B, T) if ``batch_first``."""

    batch_first: bool = False
    lengths: Any = None
    batch_sizes: Tensor | None = None

    def dims(self) -> tuple[tuple[int, ...], str]:
        """Return the allowed numbers of dimensions, and their description."""
        if self.batch_sizes is not None:
            return (1,), "(N) in a PackedSequence"
        return (1, 2), "(T) or (B, T)" if self.batch_first else "(T) or (T, B)"

    def padding(self, ids: Tensor) -> Tensor:
        """Return a mask of the ids after the end of their batch row."""
        swap = self.batch_first and ids.dim() == 2
        steps, batch = (ids.shape[0], 1) if ids.dim() == 1 else ids.shape[:: -1 if swap else 1]
        lengths = _checks.as_lengths(self.lengths, steps, batch, ids.device)
        mask = torch.arange(steps, device=ids.device).unsqueeze(1) >= lengths
        return mask.t() if swap else mask.view(ids.shape)


def read(
    module: Any,
    ids: Any,
    embedding: Any,
    layout: CallerLayout,
    states: tuple[Tensor, ...] | None,
    weights: Sequence[Any] | None,
) -> tuple[Any, Tensor | None]:
    """Return the input of a network: the embedded ids (…, I) and None; or ids (…, 1) and the matrix (V, I) to look up.

    The latter only if the network's ``weights`` are given. Raises as `checked`.
    """
    ids = checked(ids, embedding, *layout.dims(), layout)
    matrix = None if weights is None else _matrix_of(embedding)
    if matrix is not None and weights is not None and _is_certain(ids, matrix, states, weights):
        if matrix.shape[1] != module.input_size:
            raise RuntimeError(
                f"embedding: expected rows of the width input_size, {module.input_size}, got {tuple(matrix.shape)}"
            )
        fits = module._fits((*ids.shape, module.input_size), states, layout)
        if fits and _tokens.pays(ids, matrix, weights):
            return ids.unsqueeze(-1), _rows_of(embedding, matrix)
    return look_up(ids, embedding), None


def checked(ids: Any, embedding: Any, dims: tuple[int, ...], words: str, layout: CallerLayout | None = None) -> Any:
    """Return the ids after checking them, as far as the embedding module does not define what is valid.

    Args:
        ids: of ``dims`` dimensions, described by ``words``.
        embedding: a module, or a matrix (V, I).
        layout: their layout, if some may be padding.

    Raises:
        TypeError: ids are not a tensor, or ``embedding`` is neither module nor matrix.
        ValueError: ids have another number of dimensions.
        RuntimeError: ids are not integers.
        IndexError: an id is outside 0…V-1.
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
            return ids  # a user's module may accept any values
        embedding = embedding.weight
    check_devices(ids, {"embedding": embedding})
    padding = None if layout is None or layout.lengths is None else lambda: layout.padding(ids)
    return _tokens.within(ids, embedding.shape[0], padding, "input")


def embed_step(ids: Any, embedding: Any) -> Any:
    """Return the embedded ids (B, I) or (I) of a single time step. Raises as `checked`."""
    return look_up(checked(ids, embedding, (0, 1), "() or (B)"), embedding)


def look_up(ids: Any, embedding: Any) -> Any:
    """Return the embedded ids (…, I)."""
    return embedding(ids) if isinstance(embedding, nn.Module) else F.embedding(ids, embedding)


def _matrix_of(embedding: Any) -> Tensor | None:
    """Return the matrix (V, I) if ``embedding`` does nothing but look rows up in it."""
    if not isinstance(embedding, nn.Module):
        return embedding
    if not _is_torchs(embedding) or any(len(getattr(embedding, name)) for name in _HOOKS) or _has_global_hooks():
        return None
    own: Any = embedding
    changes = own.max_norm is not None or own.scale_grad_by_freq or own.sparse
    return None if changes else own.weight


def _rows_of(embedding: Any, matrix: Tensor) -> Tensor:
    """Return the matrix as a look-up gives it: without a gradient for the row of ``padding_idx``."""
    padding = None if isinstance(embedding, Tensor) else embedding.padding_idx
    if padding is None or not torch.is_grad_enabled():
        return matrix
    return F.embedding(torch.arange(matrix.shape[0], device=matrix.device), matrix, padding)


def _is_certain(ids: Any, matrix: Tensor, states: Sequence[Any] | None, weights: Sequence[Any]) -> bool:
    """Return True if the kernels can take all arguments: see `_checks.are_ordinary`. Under autocast dtypes differ."""
    if not _checks.are_ordinary(matrix, states, weights) or _checks.autocast_dtype(matrix) is not None:
        return False
    ordinary = type(ids) is Tensor or is_of_compiler(ids)
    return ordinary and ids.device == matrix.device and ids.layout is torch.strided


def _is_torchs(embedding: nn.Module) -> bool:
    return type(embedding) is nn.Embedding and "forward" not in embedding.__dict__


def _has_global_hooks() -> bool:
    return not is_compiling() and nn.modules.module._has_any_global_hook()
