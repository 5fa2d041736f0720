"""Every cell of the gallery as a network: layers, directions, packed input, lengths and resets, streams; and on every
instruction set. What a cell computes is the matter of test_gallery.py.
"""

from __future__ import annotations

import copy

import pytest
import torch
from compilers import needs_compiler
from gallery_reference import REFERENCES
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from fastrnn import _C

pytestmark = needs_compiler
every_cell = pytest.mark.parametrize("name", REFERENCES)
T, B, I, H = 6, 4, 3, 10  # noqa: E741


def network_of(cell, **options):
    torch.manual_seed(3)
    network = cell(I, H, **options).double().eval()  # a cell with masks has their means then
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(torch.randn(parameter.shape) * (0.8 / H**0.5 if parameter.dim() == 2 else 0.3))
            if name.startswith("alpha"):
                parameter.abs_().add_(0.1)
    return network


def rows_of(given):
    return given.data if isinstance(given, PackedSequence) else given


def flat(found):
    y, last = found
    return (rows_of(y), *(last if isinstance(last, tuple) else (last,)))


def with_gradients(network, given, **options):
    """Outputs, final states, and the gradients of the input and all parameters."""
    leaf = rows_of(given).clone().requires_grad_()
    found = flat(network(given._replace(data=leaf) if isinstance(given, PackedSequence) else leaf, **options))
    torch.manual_seed(5)
    seeds = [torch.randn_like(f) for f in found]
    wanted = [leaf, *network.parameters()]
    return [*found, *torch.autograd.grad(found, wanted, seeds, allow_unused=True, materialize_grads=True)]


def assert_close(ours, theirs):
    for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=lambda text, k=k: f"{k}: {text}")


@every_cell
def test_layers_directions_and_layouts(CELLS, name):
    network = network_of(CELLS[name], num_layers=2, bidirectional=True)
    x = torch.randn(T, B, I, dtype=torch.float64)
    lengths = torch.tensor([6, 5, 2, 1])
    packed = pack_padded_sequence(x, lengths)
    reset = torch.rand(T, B) < 0.3
    for given, options in ((x, {}), (x, {"lengths": lengths}), (x, {"reset": reset}), (packed, {})):
        ours = with_gradients(network, given, backend="fused", **options)
        assert_close(ours, with_gradients(network, given, backend="reference", **options))
    together, apart = flat(network(x, lengths=lengths)), flat(network(packed))
    assert_close(together[1:], apart[1:])


@every_cell
def test_a_stream_is_the_sequence(CELLS, name):
    network = network_of(CELLS[name], num_layers=2)
    x = torch.randn(T, B, I, dtype=torch.float64)
    with torch.no_grad():
        right, states, outputs = flat(network(x)), None, []
        for x_t in x:
            y_t, states = network.step(x_t, states)
            outputs.append(y_t)
        assert_close(flat((torch.stack(outputs), states)), right)
        first = copy.deepcopy(network)
        first.batch_first = True
        torch.testing.assert_close(first(x.transpose(0, 1))[0].transpose(0, 1), right[0])


@every_cell
@pytest.mark.parametrize("capability", [c for c in _C.capabilities() if c != _C.capability()])
def test_on_the_other_instruction_sets(CELLS, name, capability):
    network = network_of(CELLS[name])
    x = torch.randn(T, B, I, dtype=torch.float64)
    right = with_gradients(network, x, backend="reference")
    _C.set_capability(capability)
    assert_close(with_gradients(network, x, backend="fused"), right)
