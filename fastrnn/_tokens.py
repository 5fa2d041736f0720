"""Input given as token ids: the input product of a whole vocabulary, looked up.

``W·e`` is the same for every occurrence of a token. With V tokens in the vocabulary and more than V ids in the sequence
the products of all V embeddings are cheaper than those of the sequence, and neither a one-hot input nor the embedded
input (T, B, I) is made. All of it is torch operations, so that gradients of any order, transforms and the compiler go
through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrnn import _C, _invariant
from fastrnn import _surroundings as here
from fastrnn._call_checks import check_devices

#: Occurrences that are summed one after another in the gradient of a product; more of them make partial sums. A sum in
#: one chain would err by eps·√occurrences, where a matrix product errs by a few eps.
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
    plainly: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What a layer is to be fed with instead of ids: input, ``w_ih`` and ``b_ih``.

    Args:
        ids: (T, B), or (N) with ``batch_sizes``; int64 or int32. Beyond ``lengths`` they may be anything.
        embedding: (V, I), of the weights' dtype.
        w_ih, b_ih: (G·H, I), (G·H) or None.
        plainly: never as a table.

    Returns:
        the embedded ids (…, I) with ``w_ih`` and ``b_ih`` as they were; or the products (…, G·H), without ``w_ih``.

    Raises:
        TypeError: ``embedding`` is no tensor, or ids are none.
        RuntimeError: ids are not integers; wrong dimensions, width or dtype; two devices.
        IndexError: an id is not in 0…V-1.
    """
    _check(ids, embedding, w_ih, batch_sizes)
    check_devices(ids, {"embedding": embedding, "w_ih": w_ih, "b_ih": b_ih})

    def padding() -> Tensor:
        assert lengths is not None
        return torch.arange(ids.shape[0], device=ids.device).unsqueeze(-1) >= lengths.to(ids.device)

    ids = within(ids, embedding.shape[0], padding if isinstance(lengths, Tensor) else None, "x")
    if plainly or w_ih is None or not pays(ids, embedding, (w_ih, b_ih)):
        return F.embedding(ids, embedding), w_ih, b_ih
    if _may_need_gradient(embedding, w_ih) and not _is_finite(embedding, w_ih):
        embedding = _only_used_rows(ids, embedding, lengths)
    bias = None
    if w_ih.dtype not in _WIDE:  # a 16-bit product must not be rounded before the bias, with which it may cancel
        bias, b_ih = b_ih, None
    return _look_up(ids, _product(embedding, w_ih, bias), _chains(ids, embedding)), None, b_ih


def pays(ids: Tensor, embedding: Tensor, weights: Sequence[Tensor | None]) -> bool:
    """Whether the products of the vocabulary are fewer than those of the sequence, and as exact.

    The gradient of a table sums over the occurrences of a token in the table's own format, which 16 bits are not
    enough for. Always False in an export, whose program takes any number of ids.
    """
    if torch.compiler.is_exporting() or here.is_tracing() or _invariant.enabled:
        return False  # the last: they are rounded in another order
    if embedding.shape[0] >= ids.numel():
        return False
    if embedding.dtype in _WIDE:
        return True
    if here.is_transformed():
        return False
    return not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (embedding, *weights)))


def within(ids: Tensor, vocabulary: int, padding: Callable[[], Tensor] | None, name: str) -> Tensor:
    """The ids, checked where numbers can be read. In padding, if there is any, those that are no ids are replaced.

    Those on a GPU are not read back: torch's own look-up checks them there.
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
    """Raises RuntimeError, as torch does, for ids that are not integers."""
    if ids.dtype not in _INTEGERS:
        raise RuntimeError(f"{name}: expected ids in torch.int64 or torch.int32 with embedding=, got {ids.dtype}")


def _check(ids: Tensor, embedding: Tensor, w_ih: Tensor | None, batch_sizes: Tensor | None) -> None:
    for name, value in (("x", ids), ("embedding", embedding)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a Tensor, got {type(value).__name__}")
    check_ids(ids, "x")
    if w_ih is None:
        raise RuntimeError("embedding: expected None where weights.w_ih is None, as x is the input product then")
    dims, form = (2, "(T, B)") if batch_sizes is None else (1, "(N), as batch_sizes are given")
    if ids.dim() != dims:
        raise RuntimeError(f"x: expected ids of shape {form}, got {tuple(ids.shape)}")
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
    """Return True if all numbers can be read, and none is infinite or NaN."""
    return not here.is_compiling() and all(map(_C.is_finite, tensors))


def _only_used_rows(ids: Tensor, embedding: Tensor, lengths: Tensor | None) -> Tensor:
    """The embedding, with zeros in place of the rows that no id within ``lengths`` names.

    The gradient of such a row is zero, and must not meet what is infinite or NaN in the row or in the weights.
    """
    vocabulary = embedding.shape[0]
    if lengths is not None:
        padding = torch.arange(ids.shape[0], device=ids.device).unsqueeze(-1) >= lengths.to(ids.device)
        ids = torch.where(padding, vocabulary, ids)
    used = torch.zeros(vocabulary + 1, dtype=torch.bool, device=ids.device)
    used = used.index_fill(0, ids.flatten().long(), True)[:vocabulary]
    return torch.where(used.unsqueeze(-1), embedding, 0)


def _product(embedding: Tensor, w_ih: Tensor, bias: Tensor | None) -> Tensor:
    """(V, G·H), in the format of its factors also under autocast."""
    device = embedding.device.type
    if device in ("cpu", "cuda") and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return F.linear(embedding, w_ih, bias)
    return F.linear(embedding, w_ih, bias)


def _chains(ids: Tensor, embedding: Tensor) -> int:
    """Into how many parts the occurrences of a token are summed in backward."""
    if not torch.is_grad_enabled():
        return 1
    return max(1, ids.numel() // (_CHAIN * embedding.shape[0]))


def _look_up(ids: Tensor, table: Tensor, chains: int) -> Tensor:
    if chains > 1:  # a copy of the table for each part of the sequence; the gradient of copying is their sum
        rows = table.shape[0]
        part = torch.arange(ids.numel(), device=ids.device) * chains // ids.numel()
        ids = ids + (part * rows).view(ids.shape)
        table = table.repeat(chains, 1)
    return F.embedding(ids, table)
