"""Shared by the drop-in tests: pairs of a torch.nn module and ours with equal parameters, and comparisons."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import fastrnn
from fastrnn import _torch

T, B, I, H = 5, 4, 3, 6  # noqa: E741 - letters as in the equations

LAYERS = {
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {}),
    "rnn_tanh": ("RNN", {}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
}
CELLS = {
    "lstm": ("LSTMCell", {}),
    "gru": ("GRUCell", {}),
    "rnn_tanh": ("RNNCell", {}),
    "rnn_relu": ("RNNCell", {"nonlinearity": "relu"}),
}


def pair(name: str, *args, seed: int = 0, **options) -> tuple[nn.Module, nn.Module]:
    """Make torch.nn's module and ours, of the class `name`, from the same seed."""
    torch.manual_seed(seed)
    theirs = getattr(_torch, name)(*args, **options)
    torch.manual_seed(seed)
    ours = getattr(fastrnn, name)(*args, **options)
    return theirs, ours


def layer_pair(kind: str, input_size: int = I, hidden_size: int = H, seed: int = 0, **options):
    name, extra = LAYERS[kind]
    return pair(name, input_size, hidden_size, seed=seed, **extra, **options)


def cell_pair(kind: str, input_size: int = I, hidden_size: int = H, seed: int = 0, **options):
    name, extra = CELLS[kind]
    return pair(name, input_size, hidden_size, seed=seed, **extra, **options)


def random_hx(module: nn.Module, batch: int | None = B, seed: int = 1, **options):
    """Draw a random `hx` for `module`: unbatched if `batch` is None."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(module, _torch.RNNCellBase):
        lead, sizes = (
            () if batch is None else (batch,),
            [module.hidden_size] * (1 + isinstance(module, _torch.LSTMCell)),
        )
    else:
        rows = module.num_layers * (1 + bool(module.bidirectional))
        lead = (rows,) if batch is None else (rows, batch)
        sizes = [module.proj_size or module.hidden_size]
        if isinstance(module, _torch.LSTM):
            sizes.append(module.hidden_size)
    hx = tuple(torch.randn(*lead, size, generator=generator).to(**options) for size in sizes)
    return hx if len(hx) > 1 else hx[0]


def same(actual, expected, **tolerance) -> None:
    """Check that all tensors of two results agree, in values, shape and dtype."""
    actual, expected = tree_leaves(actual), tree_leaves(expected)
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        if isinstance(e, Tensor):
            torch.testing.assert_close(a, e, **tolerance)
        else:
            assert a == e


def leaves(result) -> list[Tensor]:
    """List the floating-point tensors of a result (of a PackedSequence, its data)."""
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.dtype.is_floating_point]


def gradients(module: nn.Module, result, *inputs: Tensor) -> dict[str, Tensor | None]:
    """Return the gradients, by name, of a loss that weighs every element of `result` differently."""
    loss = 0.0
    for leaf in leaves(result):
        loss = loss + (leaf.double() * torch.linspace(-1, 1, leaf.numel()).view(leaf.shape).cos()).sum()
    wanted = dict(module.named_parameters()) | {f"input {i}": x for i, x in enumerate(inputs)}
    found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    return dict(zip(wanted, found, strict=True))


def same_training(theirs: nn.Module, ours: nn.Module, call, *inputs: Tensor, **tolerance) -> None:
    """Check that `call(module, *inputs)` has the same results and gradients with both modules."""
    results = []
    for module in (theirs, ours):
        fresh = [x.detach().clone().requires_grad_() for x in inputs]
        result = call(module, *fresh)
        results.append((result, gradients(module, result, *fresh)))
    (expected, expected_gradients), (actual, actual_gradients) = results
    same(actual, expected, **tolerance)
    assert list(actual_gradients) == list(expected_gradients)
    for name, gradient in expected_gradients.items():
        if gradient is None:
            assert actual_gradients[name] is None, name
        else:
            torch.testing.assert_close(actual_gradients[name], gradient, msg=lambda m, n=name: f"{n}: {m}", **tolerance)
