"""Input given as token ids: a look-up in the input product of the whole vocabulary.

``W·e`` is the same for every occurrence of a token. With V tokens in the vocabulary and more than V ids in the sequence
the products of all V embeddings are cheaper than those of the sequence, and neither a one-hot input nor the embedded
input (T, B, I) is created. All steps are torch operations, which support gradients of any order, transforms and the
compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrnn import _C, _invariant
from fastrnn import _surroundings as here
from fastrnn._call_checks import check_devices

#: Occurrences summed sequentially in the gradient of a product; more are summed as partial sums. The error of one
#: sequential sum would grow as eps·√occurrences, that of a matrix product is a few eps.
_CHAIN = 32
_INTEGERS = (torch.int64, torch.int32)
_WIDE = (torch.float32, torch.float64)


def embed(
    ids: Tensor,
    embedding: Tensor,
    w_ih: Tensor | None,
    b_ih: Tensor | None,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    always_embed: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the layer's input for the given ids, with its ``w_ih`` and ``b_ih``.

    Args:
        ids: (T, B), or (N) with ``batch_sizes``; int64 or int32. Values beyond ``lengths`` are ignored.
        embedding: (V, I), in the dtype of the weights.
        w_ih, b_ih: (G·H, I), (G·H) or None.
        always_embed: never look up the input product.

    Returns:
        the embedded ids (…, I) with ``w_ih`` and ``b_ih`` unchanged; or the products (…, G·H), with ``w_ih`` None.

    Raises:
        TypeError: ``embedding`` or ``ids`` is not a tensor.
        RuntimeError: ids are not integers; wrong dimensions, width or dtype; different devices.
        IndexError: an id is outside 0…V-1.
    """
    _check(ids, embedding, w_ih, batch_sizes)
    check_devices(ids, {"embedding": embedding, "w_ih": w_ih, "b_ih": b_ih})

    def padding() -> Tensor:
        assert lengths is not None
        return torch.arange(ids.shape[0], device=ids.device).unsqueeze(-1) >= lengths.to(ids.device)

    ids = within(ids, embedding.shape[0], padding if isinstance(lengths, Tensor) else None, "x")
    if always_embed or w_ih is None or not pays(ids, embedding, (w_ih, b_ih)):
        return F.embedding(ids, embedding), w_ih, b_ih
    if _may_need_gradient(embedding, w_ih) and not _is_finite(embedding, w_ih):
        embedding = _only_used_rows(ids, embedding, lengths)
    bias = None
    if w_ih.dtype not in _WIDE:  # a 16-bit product must not be rounded before adding the bias, which may cancel it
        bias, b_ih = b_ih, None
    return _look_up(ids, _product(embedding, w_ih, bias), _chains(ids, embedding)), None, b_ih


def pays(ids: Tensor, embedding: Tensor, weights: Sequence[Tensor | None]) -> bool:
    """Return True if the products of the vocabulary are fewer than those of the sequence, and as accurate.

    The gradient of a table sums over the occurrences of a token in the table's dtype, for which 16 bits are too few.
    Always False in an export, whose program takes any number of ids.
    """
    if torch.compiler.is_exporting() or here.is_tracing() or _invariant.enabled:
        return False  # for batch invariance: the look-up rounds in another order
    if embedding.shape[0] >= ids.numel():
        return False
    if embedding.dtype in _WIDE:
        return True
    if here.is_transformed():
        return False
    return not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (embedding, *weights)))


def within(ids: Tensor, vocabulary: int, padding: Callable[[], Tensor] | None, name: str) -> Tensor:
    """Return the ids, checked if their values can be read. In padding, invalid ids are replaced.

    Ids on a GPU are not read back: torch's own look-up checks them there.
    """
    readable = ids.is_cpu and here.has_values(ids)
    if readable and _all_within(ids, vocabulary):
        return ids
    if padding is not None:
        ids = torch.where(padding() & ((ids < 0) | (ids >= vocabulary)), 0, ids)
    if readable and not _all_within(ids, vocabulary):
        low, high = map(int, torch.aminmax(ids))
        raise IndexError(
            f"{name}: expected ids from 0 to {vocabulary - 1}, as the embedding has {vocabulary} rows, "
            f"got {low} to {high}"
        )
    return ids


def check_ids(ids: Tensor, name: str) -> None:
    """Raise RuntimeError, as torch does, for ids that are not integers."""
    if ids.dtype not in _INTEGERS:
        raise RuntimeError(f"{name}: expected ids in torch.int64 or torch.int32 with embedding=, got {ids.dtype}")


def _check(ids: Tensor, embedding: Tensor, w_ih: Tensor | None, batch_sizes: Tensor | None) -> None:
    for name, value in (("x", ids), ("embedding", embedding)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a Tensor, got {type(value).__name__}")
    check_ids(ids, "x")
    if w_ih is None:
        raise RuntimeError("embedding: expected None where weights.w_ih is None, because x is the input product then")
    dims, shape = (2, "(T, B)") if batch_sizes is None else (1, "(N), as batch_sizes are given")
    if ids.dim() != dims:
        raise RuntimeError(f"x: expected ids of shape {shape}, got {tuple(ids.shape)}")
    if embedding.dim() != 2 or embedding.shape[1] != w_ih.shape[-1]:
        raise RuntimeError(
            f"embedding: expected shape (V, {w_ih.shape[-1]}), the width of w_ih, got {tuple(embedding.shape)}"
        )
    if embedding.dtype != w_ih.dtype:
        raise RuntimeError(f"embedding: expected dtype {w_ih.dtype}, that of w_ih, got {embedding.dtype}")


def _all_within(ids: Tensor, vocabulary: int) -> bool:
    if ids.numel() == 0:
        return True
    low, high = torch.aminmax(ids)
    return int(low) >= 0 and int(high) < vocabulary


def _may_need_gradient(*tensors: Tensor) -> bool:
    if not torch.is_grad_enabled():
        return False
    return here.is_transformed() or any(t.requires_grad for t in tensors)


def _is_finite(*tensors: Tensor) -> bool:
    """Return True if all values can be read and none is infinite or NaN."""
    return not here.is_compiling() and all(map(_C.is_finite, tensors))


def _only_used_rows(ids: Tensor, embedding: Tensor, lengths: Tensor | None) -> Tensor:
    """Return the embedding with zeros in the rows that no id within ``lengths`` selects.

    The gradient of such a row is zero; an infinity or NaN in the row or in the weights must not make it NaN.
    """
    vocabulary = embedding.shape[0]
    if lengths is not None:
        padding = torch.arange(ids.shape[0], device=ids.device).unsqueeze(-1) >= lengths.to(ids.device)
        ids = torch.where(padding, vocabulary, ids)
    used = torch.zeros(vocabulary + 1, dtype=torch.bool, device=ids.device)
    used = used.index_fill(0, ids.flatten().long(), True)[:vocabulary]
    return torch.where(used.unsqueeze(-1), embedding, 0)


def _product(embedding: Tensor, w_ih: Tensor, bias: Tensor | None) -> Tensor:
    """Return the product (V, G·H), in the dtype of its factors even under autocast."""
    device = embedding.device.type
    if device in ("cpu", "cuda") and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return F.linear(embedding, w_ih, bias)
    return F.linear(embedding, w_ih, bias)


def _chains(ids: Tensor, embedding: Tensor) -> int:
    """Return the number of parts in which the occurrences of a token are summed in backward."""
    if not torch.is_grad_enabled():
        return 1
    return max(1, ids.numel() // (_CHAIN * embedding.shape[0]))


def _look_up(ids: Tensor, table: Tensor, chains: int) -> Tensor:
    if chains > 1:  # one copy of the table for each part of the sequence; autograd adds the gradients of the copies
        rows = table.shape[0]
        part = torch.arange(ids.numel(), device=ids.device) * chains // ids.numel()
        ids = ids + (part * rows).view(ids.shape)
        table = table.repeat(chains, 1)
    return F.embedding(ids, table)
