"""torch.ops.fastrnn.*: whatever they are called with, they compute or raise, and their fake kernels do the same."""

from __future__ import annotations

import random
import re

import pytest
import torch
from raw_calls import LAYOUTS, OPERATORS, ORDER, invoke, moved, tensors, valid, wrong
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import fastrnn
from fastrnn import _C, _ops
from fastrnn import cells as known


@fastrnn.cell(gates="f u", states="h m", parameters="slope")
def per_unit(x, r, s, p):
    m = torch.sigmoid(x.f + r.f) * s.m + torch.tanh(x.u)
    return torch.tanh(m) * p.slope + 0.25 * s.h, m


@fastrnn.cell(gates="z n")
def staged(x, r, s):
    z = torch.sigmoid(x.z + r.z)
    n = torch.tanh(x.n + r.n(z * s.h))
    h = z * n + (1 - z) * s.h
    return h - h.mean(-1, keepdim=True)


CELLS = (*known.CELLS, per_unit.kernels, staged.kernels)


def outcome(name, call):
    """Types and sizes of what a call returns, or the type of what it raises."""
    try:
        found = invoke(name, call)
    except Exception as error:
        return type(error), str(error)
    return [(t.dtype, tuple(t.shape), t.stride()) for t in tensors(found)], ""


def on_meta(name, call):
    return outcome(name, moved(call, lambda t: t.to("meta"), ("batch_sizes",)))


def on_fakes(name, call):
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=False)
    with mode:
        return outcome(name, moved(call, lambda t: mode.from_tensor(t, static_shapes=True)))


def _is_told_by_values(what, message):
    """Return whether a call is wrong in the values of batch_sizes, which fakes do not have."""
    first = re.fullmatch(r"(states|grad_final)\[\d\]: (longer|shorter|nothing) 0", what)
    return first is not None or "batch_sizes: expected a sum" in message


def agree(real, fake, symbolic_batch=False):
    """Return whether a fake call has the outcome of the real one."""
    if real[1].startswith("lengths: expected numbers"):  # it may be wrong in another way too
        return isinstance(fake[0], type)
    if isinstance(real[0], type) or isinstance(fake[0], type):
        return real[0] == fake[0]
    if not symbolic_batch:
        return real[0] == fake[0]
    dims = [(dtype, len(shape), shape[-1:]) for dtype, shape, _ in real[0]]
    return dims == [(dtype, len(shape), shape[-1:]) for dtype, shape, _ in fake[0]]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", OPERATORS)
def test_fake_calls_raise_where_real_ones_do(name, cell, layout):
    g = random.Random(f"{name} {cell} {layout}")
    raised = 0
    call = valid(name, cell, g, layout)
    for what, other in [("nothing", call), *wrong(name, call)]:
        real = outcome(name, other)
        raised += isinstance(real[0], type)
        assert what != "nothing" or not isinstance(real[0], type), real
        meta = on_meta(name, other)
        assert agree(real, meta), (what, real, meta)
        if layout == "packed" and _is_told_by_values(what, real[1]):
            continue
        fake = on_fakes(name, other)
        assert agree(real, fake, other["batch_sizes"] is not None), (what, real, fake)
    assert raised > 30


@pytest.mark.parametrize("layout", ["plain", "lengths+reset"])
@pytest.mark.parametrize("cell", ["lstm", per_unit.kernels, staged.kernels])
@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(name, cell, layout):
    _C.set_poison(False)
    call = valid(name, cell, random.Random(f"{name} {cell} {layout}"), layout)
    utils = ("test_schema", "test_faketensor")
    arguments = [call[key] for key in ORDER[name]]
    torch.library.opcheck(getattr(torch.ops.fastrnn, name).default, arguments, test_utils=utils)


HUGE = {
    "steps": lambda c: c | {"x": torch.zeros(1, 1, 4).expand(2**58, 1, 4)},
    "steps without width": lambda c: c | {"x": torch.zeros(1, 1, 0).expand(2**58, 1, 0), "w_ih": c["w_ih"][:, :0]},
    "batch": lambda c: c | {"x": torch.zeros(1, 1, 4).expand(1, 2**59, 4)},
    "batch without width": lambda c: c | {"x": torch.zeros(1, 1, 0).expand(2, 2**60, 0), "w_ih": c["w_ih"][:, :0]},
    "input": lambda c: (
        c | {"x": torch.zeros(1).expand(1, 1, 2**57), "w_ih": torch.zeros(1).expand(len(c["w_ih"]), 2**57)}
    ),
    "units": lambda c: c | {"w_hh": torch.zeros(1).expand(2**40, 2**22), "w_ih": None},
    "units of no rows": lambda c: c | {"w_hh": torch.zeros(0, 1).expand(0, 2**62), "w_ih": None},
}


@pytest.mark.parametrize("name", HUGE)
@pytest.mark.parametrize("cell", CELLS)
def test_sizes_that_no_memory_holds(cell, name):
    """An overflow of a product of sizes would pass for a small layer."""
    sizes = _ops.traits_of(cell)
    call = {
        "cell": cell,
        "x": torch.zeros(2, 1, 4),
        "w_ih": torch.zeros(sizes.gates * 5, 4),
        "w_hh": torch.zeros(sizes.recurrent * 5 + sizes.parameters, 5),
        "b_ih": None,
        "b_hh": None,
        "w_hr": None,
        "states": [],
        "batch_sizes": None,
        "lengths": None,
        "reset": None,
        "reverse": False,
        "training": True,
        "restart": [],
    }
    invoke("sequence_forward", call)
    with pytest.raises((RuntimeError, ValueError, MemoryError)):
        invoke("sequence_forward", HUGE[name](call))


def test_a_projection_to_nothing():
    x, w_ih, w_hr = torch.randn(3, 2, 4), torch.randn(20, 4), torch.zeros(0, 5)
    for device in ("cpu", "meta"):
        given = [t.to(device) for t in (x, w_ih, torch.zeros(20, 0))]
        with pytest.raises(RuntimeError, match=r"w_hh: expected at least one hidden unit, .* and an h of at least one"):
            _ops.sequence_forward("lstm", *given, None, None, w_hr.to(device), [], None, None, None, False, True)


WRAPPED = [2**62, 2**62, 2**62, 2**62]


@pytest.mark.parametrize(
    "sizes",
    [
        [*WRAPPED, 3],
        [2**63 - 1, 2**63 - 1, 3, 2],
        [5],
        [0],
        [-1],
        [3, -1, 1],
        [1, 2],
        [2**63 - 1],
        [3, 0],
        [1, 1, 1, 1],
    ],
    ids=str,
)
def test_batch_sizes_of_all_kinds(sizes):
    """Their sum, in 64 bits, may be that of the rows though they are not."""
    x, w_ih, w_hh = torch.randn(3, 4), torch.randn(8, 4), torch.randn(8, 2)
    with pytest.raises(ValueError, match="batch_sizes: expected"):
        _ops.sequence_forward("lstm", x, w_ih, w_hh, None, None, None, [], torch.tensor(sizes), None, None, False, True)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("value", [-1, 4, 127, -128, 2**31, -(2**63), 2**63 - 1])
def test_lengths_of_all_kinds(dtype, value):
    if not torch.iinfo(dtype).min <= value <= torch.iinfo(dtype).max:
        pytest.skip("no such number")
    x, w_ih, w_hh = torch.randn(3, 2, 4), torch.randn(8, 4), torch.randn(8, 2)
    for lengths in ([value, 1], [1, value]):
        with pytest.raises(ValueError, match="lengths: expected numbers from 0 to the 3 steps"):
            _ops.sequence_forward(
                *("lstm", x, w_ih, w_hh, None, None, None, [], None),
                *(torch.tensor(lengths, dtype=dtype), None, False, True),
            )


UNUSUAL = {
    "sparse": lambda t: t.to_sparse(),
    "sparse rows": lambda t: t.to_sparse_csr() if t.dim() == 2 else t.to_sparse(),
    "onednn": lambda t: t.to_mkldnn() if t.dtype is torch.float32 else t.to_sparse(),
    "quantized": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    "complex": lambda t: t.to(torch.complex64),
    "nested": lambda t: torch.nested.nested_tensor([t, t]),
    "float8": lambda t: t.to(torch.float8_e4m3fn),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", UNUSUAL)
@pytest.mark.parametrize("name", OPERATORS)
def test_tensors_of_other_kinds(name, kind):
    for layout in LAYOUTS:
        call = valid(name, "lstm", random.Random(layout), layout)
        for key, value in call.items():
            if isinstance(value, torch.Tensor):
                changed = call | {key: UNUSUAL[kind](value)}
            elif isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
                changed = call | {key: [UNUSUAL[kind](value[0]), *value[1:]]}
            else:
                continue
            if key not in ORDER[name]:
                continue
            with pytest.raises((RuntimeError, ValueError, TypeError)):
                pytest.fail(f"{key}: {invoke(name, changed)}")
            if name == "sequence_forward" and key != "restart":
                order = ("x", "w_ih", "w_hh", "b_ih", "b_hh", "w_hr", "states", "batch_sizes", "lengths", "reset")
                flat = ("lstm", False, 0.0, len(changed["states"]), *(changed[k] for k in order[7:]))
                flat += (*(changed[k] for k in order[:6]), *changed["states"])
                with pytest.raises((RuntimeError, ValueError, TypeError)):
                    pytest.fail(f"{key}: {_C.layer(flat)}")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPERATORS)
def test_strides_and_offsets_of_all_kinds(name, layout):
    """Expanded, reversed in order, with an offset, negated lazily: the same numbers."""
    ways = {
        "offset": lambda t: torch.cat((t.new_ones(3), t.flatten()))[3:].view(t.shape) if t.numel() else t,
        "permuted": lambda t: t.permute(*reversed(range(t.dim()))).contiguous().permute(*reversed(range(t.dim()))),
        "every second": lambda t: t.unsqueeze(-1).repeat(*[1] * t.dim(), 2)[..., 0],
        "negated": lambda t: torch._neg_view(-t) if t.is_floating_point() else t,
        "expanded": lambda t: t[:1].expand_as(t) if t.dim() and t.shape[0] else t,
    }
    for cell in CELLS:
        call = valid(name, cell, random.Random(f"{layout} {name}"), layout, torch.float64)
        for what, way in ways.items():
            keep = ("batch_sizes", "y", "reserve") if what == "expanded" else ()
            keep += ("lengths", "reset") if what == "expanded" else ()
            changed = moved(call, way, keep)
            right = moved(changed, lambda t: t.contiguous().resolve_neg().clone())
            for a, b in zip(tensors(invoke(name, changed)), tensors(invoke(name, right)), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=f"{cell} {what}")


def test_none_for_a_required_tensor_beside_meta_tensors():
    w_ih, w_hh, x = (torch.empty(*shape, device="meta") for shape in ((8, 3), (8, 2), (4, 1, 3)))
    rest = (None, None, None, None, None, None, None, False, True)
    with pytest.raises(TypeError, match="w_hh: expected a Tensor, got None"):
        _ops.sequence_forward("lstm", x, w_ih, None, *rest)
    with pytest.raises(TypeError, match="input: expected a Tensor, got None"):
        _ops.sequence_forward("lstm", None, w_ih, w_hh, *rest)
    with pytest.raises(TypeError, match="input: expected a Tensor, got None"):
        _ops.layer_backward("lstm", None, [], x, None, w_hh, None, None, None, [x] * 4, *rest[:3], False, [True] * 11)
