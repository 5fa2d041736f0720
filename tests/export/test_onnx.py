"""ONNX export with both of torch's exporters, run by onnxruntime at other sizes than those of the example."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from pages import ROOT, blocks
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fastrnn
from fastrnn import gallery
from fastrnn.functional import LayerWeights, sequence

onnx = pytest.importorskip("onnx", reason="ONNX export is tested with onnx")
pytest.importorskip("onnxscript", reason="torch.onnx.export(dynamo=True) needs onnxscript")
onnxruntime = pytest.importorskip("onnxruntime", reason="exported models are run by onnxruntime")

IN, H = 5, 7
LAYERS = (fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN)
NAMES = ("LSTM", "GRU", "RNN", "Scan", "Loop")
SIZES = ((9, 4), (1, 1))  # (T, B); the examples have (6, 3)
EXPORTERS = pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])


@fastrnn.cell(gates="f u", states="h c", parameters={"p": 0.3})
def own(x, r, s, p):
    f = torch.sigmoid(x.f + r.f(s.c) + p.p)
    c = f * s.c + (1 - f) * x.u
    return torch.tanh(c), c


class Model(nn.Module):
    """`run(layer, *inputs)` as a model."""

    def __init__(self, layer: nn.Module, run: Callable[..., Any]) -> None:
        super().__init__()
        self.layer, self.run = layer, run

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self.layer, *inputs)


class Case(NamedTuple):
    model: nn.Module
    inputs: Callable[[int, int], tuple[Tensor, ...]]  # of T and B
    axes: tuple[dict[int, str], ...]
    nodes: dict[str, int]


def leaves(tree: Any) -> list[Tensor]:
    return torch.utils._pytree.tree_leaves(tree)


def export(case: Case, dynamo: bool) -> Any:
    """The model, at (T, B) = (6, 3), as onnx has it."""
    inputs = case.inputs(6, 3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore")  # those of the exporters
        if dynamo:
            axes: Any = (case.axes,) if isinstance(case.model, Model) else case.axes
            return torch.onnx.export(case.model, inputs, dynamo=True, verbose=False, dynamic_shapes=axes).model_proto
        file, names = io.BytesIO(), [f"input{k}" for k in range(len(inputs))]
        axes = dict(zip(names, case.axes, strict=True))
        torch.onnx.export(case.model, inputs, file, dynamo=False, input_names=names, dynamic_axes=axes)
    return onnx.load_from_string(file.getvalue())


def nodes(model: Any) -> dict[str, int]:
    assert not model.functions
    return {name: n for name, n in Counter(node.op_type for node in model.graph.node).items() if name in NAMES}


def check(case: Case, dynamo: bool, tolerance: float = 1e-5) -> Any:
    case.model.eval()
    model = export(case, dynamo)
    loop = "Scan" if dynamo else "Loop"
    assert nodes(model) == {loop if name == "loop" else name: n for name, n in case.nodes.items()}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for size in SIZES:
        inputs = case.inputs(*size)
        fed = {i.name: t.numpy() for i, t in zip(session.get_inputs(), inputs, strict=True)}
        with torch.no_grad():
            outputs = leaves(case.model(*inputs))
        for output, expected in zip(session.run(None, fed), outputs, strict=True):
            torch.testing.assert_close(torch.from_numpy(output), expected, rtol=tolerance, atol=tolerance)
    return model


def hx_of(layer: Any, h: Tensor) -> Any:
    """Return the states in the layout of ``hx``."""
    return (h, 2 * h) if isinstance(layer, fastrnn.LSTM) else h


def lengths_of(T: int, B: int) -> Tensor:
    """The last row has no steps."""
    return torch.cat((torch.randint(1, T + 1, (B - 1,)), torch.tensor([0])))


def padded(T: int, B: int, *rest: int) -> tuple[Tensor, Tensor]:
    """Rows (T, B, ·) with NaN behind their ends, and their lengths."""
    lengths, x = lengths_of(T, B), torch.randn(T, B, *rest)
    return x.masked_fill((torch.arange(T).unsqueeze(-1) >= lengths).unsqueeze(-1), torch.nan), lengths


def stack(make: Any) -> Case:
    layer = make(IN, H, num_layers=2, dropout=0.5, bidirectional=True, batch_first=True)
    return Case(layer, lambda T, B: (torch.randn(B, T, IN),), ({0: "B", 1: "T"},), {make.__name__: 4})


def unbatched(make: Any) -> Case:
    layer = make(IN, H, bidirectional=True)
    return Case(layer, lambda T, B: (torch.randn(T, IN),), ({0: "T"},), {make.__name__: 2})


def states(make: Any) -> Case:
    """Without biases, and with a bound for gradients, which is none for values."""
    layer = make(IN, H, bias=False)
    layer.clip_state_gradient = 1e-3
    model = Model(layer, lambda layer, x, h: layer(x, hx_of(layer, h)))
    axes = ({0: "T", 1: "B"}, {1: "B"})
    return Case(model, lambda T, B: (torch.randn(T, B, IN), torch.randn(1, B, H)), axes, {make.__name__: 1})


def lengths(make: Any) -> Case:
    model = Model(
        make(IN, H, bidirectional=True),
        lambda layer, x, n, h: (layer(x, hx_of(layer, h), lengths=n), layer(x, lengths=n)),
    )
    axes = ({0: "T", 1: "B"}, {0: "B"}, {1: "B"})
    return Case(model, lambda T, B: (*padded(T, B, IN), torch.randn(2, B, H)), axes, {make.__name__: 4})


def embedding(make: Any) -> Case:
    """The example has more ids than the vocabulary; in padding there are such as are none."""
    parts = nn.ModuleList([make(IN, H), nn.Embedding(11, IN)])
    model = Model(parts, lambda parts, ids, n: parts[0](ids, embedding=parts[1], lengths=n))

    def inputs(T: int, B: int) -> tuple[Tensor, ...]:
        n, ids = lengths_of(T, B), torch.randint(11, (T, B))
        return ids if (T, B) == (6, 3) else ids.masked_fill(torch.arange(T).unsqueeze(-1) >= n, -1), n

    return Case(model, inputs, ({0: "T", 1: "B"}, {0: "B"}), {make.__name__: 1})


def reset(make: Any) -> Case:
    """From other states than new segments start from. The example has no resets."""
    layer = make(IN, H, bidirectional=True, learn_initial_state=True)
    for name, parameter in layer.named_parameters():
        if name.startswith("initial"):
            nn.init.normal_(parameter)
    model = Model(layer, lambda layer, x, n, z, h: layer(x, hx_of(layer, h), lengths=n, reset=z))

    def inputs(T: int, B: int) -> tuple[Tensor, ...]:
        return *padded(T, B, IN), torch.rand(T, B) < (0 if (T, B) == (6, 3) else 0.5), torch.randn(2, B, H)

    return Case(model, inputs, ({0: "T", 1: "B"}, {0: "B"}, {0: "T", 1: "B"}, {1: "B"}), {"loop": 2})


def reset_to_states(make: Any) -> Case:
    model = Model(make(IN, H), lambda layer, x, z, h: layer(x, hx_of(layer, h), reset=z))
    axes = ({0: "T", 1: "B"}, {0: "T", 1: "B"}, {1: "B"})
    return Case(
        model, lambda T, B: (torch.randn(T, B, IN), torch.rand(T, B) < 0.5, torch.randn(1, B, H)), axes, {"loop": 1}
    )


OPTIONS = (stack, unbatched, states, lengths, embedding, reset, reset_to_states)
#: Exports with dynamo=True take about ten times as long as traces: what differs between cells for all, the rest once.
WITH_DYNAMO = (
    *((make, option) for option in (stack, states, lengths) for make in LAYERS),
    (fastrnn.GRU, unbatched),
    (fastrnn.RNN, embedding),
    (fastrnn.LSTM, reset),
    (fastrnn.GRU, reset_to_states),
)


@pytest.mark.parametrize(("make", "option"), WITH_DYNAMO)
def test_layers_with_dynamo(make: Any, option: Callable[[Any], Case]) -> None:
    check(option(make), True)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("make", LAYERS)
def test_layers_with_torchscript(make: Any, option: Callable[[Any], Case]) -> None:
    check(option(make), False)


@EXPORTERS
def test_relu(dynamo: bool) -> None:
    layer = fastrnn.RNN(IN, H, nonlinearity="relu")
    model = check(Case(layer, lambda T, B: (torch.randn(T, B, IN),), ({0: "T", 1: "B"},), {"RNN": 1}), dynamo)
    (node,) = (node for node in model.graph.node if node.op_type == "RNN")
    assert next(a.strings for a in node.attribute if a.name == "activations") == [b"Relu"]


@EXPORTERS
@pytest.mark.parametrize(
    ("dtype", "fused", "tolerance"),
    [(torch.float64, False, 1e-12), (torch.float16, True, 2e-3), (torch.bfloat16, True, 2e-2)],
    ids=["float64", "float16", "bfloat16"],
)
def test_dtypes(dtype: torch.dtype, fused: bool, tolerance: float, dynamo: bool) -> None:
    """In float64 onnxruntime has no such nodes. numpy has no bfloat16, so that inputs and outputs are float32 there."""
    io_dtype = torch.float32 if dtype is torch.bfloat16 else dtype
    model = Model(fastrnn.GRU(IN, H).to(dtype), lambda layer, x: layer(x.to(dtype))[0].to(io_dtype))
    case = Case(
        model,
        lambda T, B: (torch.randn(T, B, IN).to(io_dtype),),
        ({0: "T", 1: "B"},),
        {"GRU": 1} if fused else {"loop": 1},
    )
    check(case, dynamo, tolerance)


@EXPORTERS
def test_projection(dynamo: bool) -> None:
    layer = fastrnn.LSTM(IN, H, proj_size=3, bidirectional=True)
    check(Case(layer, lambda T, B: (torch.randn(T, B, IN),), ({0: "T", 1: "B"},), {"loop": 2}), dynamo)


@EXPORTERS
def test_input_product_in_functional_hx_of(dynamo: bool) -> None:
    """No node takes an input product. Both states are the same tensor, which the loop must not confuse."""
    layer = fastrnn.LSTM(IN, H)

    def run(layer: Any, x: Tensor, h: Tensor) -> Any:
        return sequence("lstm", x, LayerWeights(None, layer.weight_hh_l0, None, layer.bias_hh_l0), (h, h))

    axes = ({0: "T", 1: "B"}, {0: "B"})
    check(
        Case(Model(layer, run), lambda T, B: (torch.randn(T, B, 4 * H), torch.randn(B, H)), axes, {"loop": 1}), dynamo
    )


@EXPORTERS
@pytest.mark.parametrize(
    ("make", "options"),
    [(own, {"bidirectional": True}), (gallery.CELLS["layer_norm_gru"], {}), (gallery.CELLS["slstm"], {"heads": 2})],
    ids=["own", "layer_norm_gru", "slstm_heads"],
)
def test_custom_cells(make: Any, options: dict[str, Any], dynamo: bool) -> None:
    """The cell's own step, in a loop of any length; no kernels are compiled for it."""

    def run(layer: Any, x: Tensor, n: Tensor, z: Tensor) -> Any:
        return layer(x, lengths=n, reset=z, backend="reference")

    def inputs(T: int, B: int) -> tuple[Tensor, ...]:
        return *padded(T, B, IN), torch.rand(T, B) < 0.5

    loops = 2 if options.get("bidirectional") else options.get("heads", 1)
    axes = ({0: "T", 1: "B"}, {0: "B"}, {0: "T", 1: "B"})
    check(Case(Model(make(IN, H + 1, **options), run), inputs, axes, {"loop": loops}), dynamo)


@pytest.mark.parametrize("name", sorted(gallery.CELLS))
def test_gallery(name: str) -> None:
    """Every cell, in one of the two exporters: the step is the same in both."""
    model = Model(gallery.CELLS[name](IN, H), lambda layer, x: layer(x, backend="reference"))
    check(Case(model, lambda T, B: (torch.randn(T, B, IN),), ({0: "T", 1: "B"},), {"loop": 1}), False)


@EXPORTERS
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_cells(name: str, dynamo: bool) -> None:
    """One step is a node of one step, or in a trace torch's own operations. The first call names no state."""
    cell = getattr(fastrnn, f"{name}Cell")(IN, H)

    def run(cell: Any, x: Tensor) -> Any:
        return cell(x, cell(x))

    case = Case(Model(cell, run), lambda T, B: (torch.randn(B, IN),), ({0: "B"},), {name: 2} if dynamo else {})
    check(case, dynamo)


@EXPORTERS
def test_cell_as_a_model(dynamo: bool) -> None:
    cell = fastrnn.LSTMCell(IN, H, dtype=torch.float64)
    check(Case(cell, lambda T, B: (torch.randn(B, IN, dtype=torch.float64),), ({0: "B"},), {}), dynamo, 1e-12)


@pytest.mark.parametrize("make", [fastrnn.LSTM, gallery.CELLS["min_gru"]], ids=["LSTM", "min_gru"])
def test_packed(make: Any) -> None:
    """Packed rows and batch sizes as inputs."""
    layer, own_cell = make(IN, H), not isinstance(make, type)
    backend = "reference" if own_cell else "auto"

    def run(layer: Any, x: Tensor, sizes: Tensor) -> Any:
        y, last = layer(PackedSequence(x, sizes), backend=backend)
        return y.data, last

    def inputs(T: int, B: int) -> tuple[Tensor, ...]:
        ends = torch.cat((torch.tensor([T]), torch.randint(1, T + 1, (B - 1,)).sort(descending=True)[0]))
        packed = pack_padded_sequence(torch.randn(T, B, IN), ends)
        return packed.data, packed.batch_sizes

    case = Case(Model(layer, run), inputs, ({0: "N"}, {0: "T"}), {"loop": 1} if own_cell else {"LSTM": 1})
    check(case, True)
    if own_cell:
        with pytest.raises(ValueError, match=r"batch_sizes: expected None .* pass padded input with lengths="):
            export(case, False)


def test_packing_in_the_model() -> None:
    """The TorchScript exporter sees through the packing around torch.nn's layers."""

    def run(layer: Any, x: Tensor, n: Tensor) -> Any:
        y, last = layer(pack_padded_sequence(x, n, enforce_sorted=False))
        return pad_packed_sequence(y)[0], last

    def inputs(T: int, B: int) -> tuple[Tensor, ...]:
        return torch.randn(T, B, IN), torch.randint(1, T + 1, (B,)).index_fill(0, torch.tensor(0), T)

    check(Case(Model(fastrnn.GRU(IN, H), run), inputs, ({0: "T", 1: "B"}, {0: "B"}), {"GRU": 1}), False)


@EXPORTERS
def test_keywords_of_a_layer(dynamo: bool) -> None:
    """A layer is the model itself, and the exporter gives it a keyword-only argument."""
    layer, x, n = fastrnn.GRU(IN, H).eval(), torch.randn(6, 3, IN), torch.tensor([6, 0, 2])
    file = io.BytesIO()
    options: dict[str, Any] = {"dynamo": True} if dynamo else {"f": file, "dynamo": False}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore")
        program = torch.onnx.export(layer, (x,), kwargs={"lengths": n}, verbose=False, **options)
    text = program.model_proto.SerializeToString() if dynamo else file.getvalue()
    session = onnxruntime.InferenceSession(text)
    fed = dict(zip([i.name for i in session.get_inputs()], (x.numpy(), n.numpy()), strict=True))
    for output, expected in zip(session.run(None, fed), layer(x, lengths=n), strict=True):
        torch.testing.assert_close(torch.from_numpy(output), expected.detach())


def test_keywords_by_position_raise() -> None:
    """Elsewhere they are keyword-only, in a trace too."""
    layer, x = fastrnn.GRU(IN, H), torch.randn(6, 3, IN)
    for call in (layer, lambda *inputs: torch.jit.trace(layer, inputs)):
        with pytest.raises(TypeError, match="positional arguments"):
            call(x, torch.zeros(1, 3, H), torch.tensor([6, 0, 2]))


@pytest.mark.parametrize("gradients", [True, False])
def test_exported_program(gradients: bool) -> None:
    """A program that was captured before holds the operator; with gradients in its form for training."""
    with torch.set_grad_enabled(gradients):
        program = torch.export.export(fastrnn.LSTM(IN, H), (torch.randn(6, 3, IN),))
    assert "sequence_forward" in str(program.graph)
    assert nodes(torch.onnx.export(program, verbose=False).model_proto) == {"LSTM": 1}


def test_captured_programs_keep_the_operator() -> None:
    """Other tracing than the exporter's is as it was."""
    layer, x = fastrnn.LSTM(IN, H).eval(), torch.randn(6, 3, IN)
    program = torch.export.export(layer, (x,)).run_decompositions()
    assert "sequence_forward" in str(program.graph)
    torch.testing.assert_close(program.module()(x)[0], layer(x)[0])


def test_import_does_not_load_onnx() -> None:
    code = "import fastrnn, sys; print({'onnx', 'onnxscript', 'onnxruntime'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="not in a checkout")
def test_code_of_the_page(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = (code for _, code in blocks(ROOT / "docs" / "deployment.md") if "torch.onnx.export" in code)
    names: dict[str, Any] = {}
    exec(code, names)
    x = torch.randn(9, 4, 32)
    (y, *_) = onnxruntime.InferenceSession("model.onnx").run(None, {"input": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), names["model"](x)[0].detach())
