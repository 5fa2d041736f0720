"""The modules on a GPU: all that they can do on the CPU, against torch.nn and plain torch, in float64 exactly."""

from __future__ import annotations

import copy

import pytest
import torch
from cuda_device import finish, needs_gpu, reset_gpu, runs
from dropin_cases import CELLS, LAYERS, B, H, I, T, cell_pair, layer_pair, leaves, random_hx, same
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastrnn
from fastrnn import _gpu

pytestmark = needs_gpu

KINDS = list(LAYERS)
GPU = {"device": "cuda", "dtype": torch.float64}
OPTIONS = [
    {},
    {"batch_first": True},
    {"num_layers": 3, "bias": False},
    {"bidirectional": True, "batch_first": True},
    {"num_layers": 2, "bidirectional": True},
]


@pytest.fixture(autouse=True)
def _poisoned():
    _gpu.module.set_poison(True)
    yield
    finish()
    reset_gpu()


@pytest.fixture
def ran():
    """Fails a test in which no kernel of ours has run."""
    before = sum(runs().values())
    yield
    assert sum(runs().values()) > before


def pair(kind: str, **options):
    return layer_pair(kind, **{**GPU, **options})


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=dtype)


def same_gradients(theirs, ours, expected, actual, *inputs, **tolerance) -> None:
    same(gradients_of(ours, actual, *inputs), gradients_of(theirs, expected, *inputs), **tolerance)


def gradients_of(module, result, *inputs):
    """As dropin_cases.gradients, with weights on the GPU."""
    loss = sum((v.double() * torch.linspace(-1, 1, v.numel(), **GPU).view(v.shape).cos()).sum() for v in leaves(result))
    wanted = [*module.parameters(), *inputs]
    return list(torch.autograd.grad(loss, wanted, allow_unused=True, retain_graph=True))


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_layers(ran, kind, options, batched, given):
    theirs, ours = pair(kind, **options)
    shape = (T, I) if not batched else (B, T, I) if options.get("batch_first") else (T, B, I)
    x = draw(*shape).requires_grad_()
    hx = random_hx(theirs, B if batched else None, **GPU) if given else None
    expected, actual = theirs(x, hx), ours(x, hx)
    same(actual, expected)
    same_gradients(theirs, ours, expected, actual, x)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}])
def test_projection(ran, options):
    theirs, ours = pair("lstm", proj_size=2, **options)
    x, hx = draw(T, T, I), random_hx(theirs, T, **GPU)
    expected, actual = theirs(x, hx), ours(x, hx)
    same(actual, expected)
    same_gradients(theirs, ours, expected, actual)


@pytest.mark.parametrize("sorted_", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_packed_and_lengths(ran, kind, options, sorted_):
    theirs, ours = pair(kind, **options)
    first = options.get("batch_first", False)
    lengths = [5, 4, 2, 1] if sorted_ else [2, 5, 1, 4]
    x, hx = draw(*((B, T, I) if first else (T, B, I))), random_hx(theirs, **GPU)
    packed = pack_padded_sequence(x, lengths, first, enforce_sorted=sorted_)
    expected, actual = theirs(packed, hx), ours(packed, hx)
    same(actual, expected)
    same_gradients(theirs, ours, expected, actual)
    expected = pad_packed_sequence(expected[0], first, total_length=T)[0], expected[1]
    padding = torch.arange(T) >= torch.tensor(lengths).unsqueeze(1)
    x[(padding if first else padding.t()).cuda()] = float("nan")
    for form in (lengths, torch.tensor(lengths), torch.tensor(lengths, device="cuda", dtype=torch.int32)):
        actual = ours(x, hx, lengths=form)
        same(actual, expected)
        same_gradients(theirs, ours, expected, actual)


@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_reset(ran, kind, options, with_lengths):
    _, ours = pair(kind, **options)
    lead = (B, T) if options.get("batch_first") else (T, B)
    x, reset = draw(*lead, I).requires_grad_(), torch.rand(*lead) < 0.4
    hx = random_hx(ours, **GPU)
    keywords = {"lengths": [3, 0, 5, 2]} if with_lengths else {}
    expected = ours(x, hx, reset=reset, backend="reference", **keywords)
    for form in (reset, reset.cuda()):
        actual = ours(x, hx, reset=form, **keywords)
        same(actual, expected)
        same_gradients(ours, ours, expected, actual, x)
    for segment in (True, 2, 3):
        actual = ours(x, hx, reset=reset.cuda(), recompute=segment, **keywords)
        same(actual, expected)
        same_gradients(ours, ours, expected, actual, x)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_recompute(ran, kind, options):
    theirs, ours = pair(kind, **options)
    x = draw(T, T, I).requires_grad_()
    expected, actual = theirs(x), ours(x, recompute=True)
    same(actual, expected)
    same_gradients(theirs, ours, expected, actual, x)
    packed = pack_padded_sequence(x, [5, 4, 4, 2, 1], options.get("batch_first", False))
    expected, actual = theirs(packed), ours(packed, recompute=2)
    same(actual, expected)
    same_gradients(theirs, ours, expected, actual, x)


def test_dropout_between_layers(ran):
    net = fastrnn.LSTM(I, 200, num_layers=3, dropout=0.5, **GPU)
    x = draw(T, B, I)
    net.eval()
    assert torch.equal(net(x)[0], net(x)[0])
    net.train()
    torch.manual_seed(3)
    first = net(x)[0]
    torch.manual_seed(3)
    assert torch.equal(net(x)[0], first)
    assert not torch.equal(net(x)[0], first)
    net.dropout = 1.0
    silent, _ = net(x)
    assert torch.equal(silent[:, 0], silent[:, 1])  # nothing of x reaches the last layer


@pytest.mark.parametrize("batch", [None, 1, B])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_of_a_stream_add_up_to_the_sequence(ran, kind, batch):
    _, ours = pair(kind, num_layers=2)
    x = draw(T, I) if batch is None else draw(T, batch, I)
    state, outputs = None, []
    for t in range(T):
        y, state = ours.step(x[t], state)
        outputs.append(y)
    same((torch.stack(outputs), state), ours(x))


def test_streams_are_for_the_cpu():
    with pytest.raises(TypeError, match="module: expected dense CPU weights"):
        fastrnn.Stream(fastrnn.GRU(I, H, device="cuda"))


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("kind", list(CELLS))
def test_cells(ran, kind, batched):
    theirs, ours = cell_pair(kind, **GPU)
    x = draw(*((B, I) if batched else (I,))).requires_grad_()
    for hx in (None, random_hx(theirs, B if batched else None, **GPU)):
        expected, actual = theirs(x, hx), ours(x, hx)
        same(actual, expected)
        same_gradients(theirs, ours, expected, actual, x)


@pytest.mark.parametrize("vocabulary", [7, 100])  # fewer and more than ids
@pytest.mark.parametrize("kind", KINDS)
def test_embedding(ran, kind, vocabulary):
    theirs, ours = pair(kind, num_layers=2)
    table = nn.Embedding(vocabulary, I, **GPU)
    ids = torch.randint(0, vocabulary, (T, B), device="cuda")
    expected, actual = theirs(table(ids)), ours(ids, embedding=table)
    same(actual, expected)
    same(gradients_of(ours, actual, table.weight), gradients_of(theirs, expected, table.weight))
    wrong = ids.clone()
    wrong[3:, 1] = -1  # padding may hold anything
    lengths = torch.tensor([5, 3, 5, 5], device="cuda")
    same(ours(wrong, embedding=table, lengths=lengths), ours(table(ids), lengths=lengths))


@pytest.mark.parametrize("kind", KINDS)
def test_convert(ran, kind):
    theirs, _ = pair(kind, num_layers=2, bidirectional=True)
    model = nn.Sequential(copy.deepcopy(theirs))
    x = draw(T, B, I)
    expected = theirs(x)
    same(fastrnn.convert(model)(x), expected)
    same(fastrnn.convert(model, to="torch")(x), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_moved_from_the_cpu_and_back(kind):
    _, ours = layer_pair(kind, dtype=torch.float64, num_layers=2, bidirectional=True)
    x = torch.randn(T, B, I, dtype=torch.float64)
    expected = ours(x)
    actual = ours.cuda()(x.cuda())
    same(actual, expected, check_device=False)
    same(ours.cpu()(x), expected)


FORMS = ["no hx", "float32 hx", "low hx", "low input", "packed"]


@pytest.mark.parametrize("target", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("form", "cell"), [*((f, False) for f in FORMS), *((f, True) for f in FORMS if f != "packed")])
@pytest.mark.parametrize("kind", KINDS)
def test_autocast(ran, kind, cell, form, target):
    """Everything is in the format that was asked for (where torch knows float16 alone for what it gives to cuDNN)."""
    theirs, ours = cell_pair(kind, 16, 24, device="cuda") if cell else layer_pair(kind, 16, 24, device="cuda")
    exact = copy.deepcopy(theirs).double()
    x = draw(*((B, 16) if cell else (T, B, 16)), dtype=torch.float32)
    hx = random_hx(theirs, device="cuda", dtype=target if form == "low hx" else torch.float32) if "hx" in form else None
    hx = None if form == "no hx" else hx
    given = x.to(target) if form == "low input" else x
    given = pack_padded_sequence(given, [5, 4, 2, 1]) if form == "packed" else given
    with torch.autocast("cuda", dtype=target):
        actual, expected = ours(given, hx), theirs(given, hx)
    assert {v.dtype for v in leaves(actual)} == {target}
    if target == torch.float16:
        assert [v.dtype for v in leaves(actual)] == [v.dtype for v in leaves(expected)]
    double = None if hx is None else tuple(s.double() for s in hx) if isinstance(hx, tuple) else hx.double()
    right = exact(pack_padded_sequence(x.double(), [5, 4, 2, 1]) if form == "packed" else x.double(), double)

    def worst(found) -> float:
        return max((a.double() - b).abs().max().item() for a, b in zip(leaves(found), leaves(right), strict=True))

    assert worst(actual) <= 2 * worst(expected) + 4 * torch.finfo(target).eps
    slopes = gradients_of(ours, actual)
    assert {g.dtype for g in slopes} == {torch.float32}


def test_autocast_leaves_float64_to_torch():
    theirs, ours = pair("lstm")
    x = draw(T, B, I)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        same(ours(x), theirs(x))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("form", ["plain", "lengths", "reset", "bidirectional"])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_compiled(ran, kind, form, backend):
    options = {"num_layers": 2, "bidirectional": True} if form == "bidirectional" else {}
    _, ours = pair(kind, **options)
    x = draw(T, B, I).requires_grad_()
    keywords = {"lengths": torch.tensor([2, 5, 0, 4], device="cuda")} if form == "lengths" else {}
    if form == "reset":
        keywords = {"reset": torch.rand(T, B, device="cuda") < 0.3}
    torch._dynamo.reset()
    compiled = torch.compile(ours, fullgraph=True, backend=backend)
    expected, actual = ours(x, **keywords), compiled(x, **keywords)
    same(actual, expected)
    same_gradients(ours, ours, expected, actual, x)
    with torch.no_grad():
        same(compiled(x, **keywords), expected)


def test_compiled_with_a_graph_of_cuda():
    _, ours = pair("lstm")
    x = draw(T, B, I)
    compiled = torch.compile(ours, fullgraph=True, mode="reduce-overhead")
    expected = ours(x)
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        y = compiled(x)[0]
        same(y, expected[0])
        gradients_of(ours, y)


@pytest.mark.parametrize("kind", KINDS)
def test_exported(ran, kind):
    _, ours = pair(kind, num_layers=2)
    x = draw(T, B, I)
    program = torch.export.export(ours.eval(), (x,))
    same(program.module()(x), ours(x))


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh"])
def test_double_backward(ran, kind):
    theirs, ours = pair(kind)
    found = []
    for module in (theirs, ours):
        x = torch.arange(T * B * I, **GPU).view(T, B, I).sin().requires_grad_()
        with torch.backends.cudnn.flags(enabled=False):  # cuDNN has no second derivative
            y = module(x)[0]
            (g,) = torch.autograd.grad(y.sin().sum(), [x], create_graph=True)
            found.append([g, *torch.autograd.grad(g.square().sum(), [x, *module.parameters()], allow_unused=True)])
    same(found[1], found[0])


@pytest.mark.parametrize("kind", KINDS)
def test_backward_in_evaluation_mode(ran, kind):
    """Which cuDNN refuses."""
    theirs, ours = pair(kind)
    x = draw(T, B, I)
    expected, actual = theirs(x), ours.eval()(x)
    same_gradients(theirs, ours, expected, actual)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_backward_twice(ran, kind):
    _, ours = pair(kind)
    loss = ours(draw(T, B, I))[0].sin().sum()
    first = torch.autograd.grad(loss, list(ours.parameters()), retain_graph=True)
    same(torch.autograd.grad(loss, list(ours.parameters())), first, rtol=0, atol=0)


def test_vmap_and_torch_func(ran):
    _, net = pair("gru")
    parameters = dict(net.named_parameters())
    xs = draw(5, T, B, I)

    def loss(parameters, x):
        return torch.func.functional_call(net, parameters, (x,))[0].sin().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, xs)
    for k, x in enumerate(xs):
        same({n: g[k] for n, g in found.items()}, torch.func.grad(loss)(parameters, x))


def test_output_changed_in_place_is_noticed():
    """As torch.nn on a GPU notices it."""
    theirs, ours = pair("gru")
    for module in (theirs, ours):
        y, _ = module(draw(T, B, I))
        y.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def errors(module, *arguments) -> tuple[type, str]:
    with pytest.raises(Exception) as caught:
        module(*arguments)
    return caught.type, str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_on_two_devices_raise_as_in_torch(kind):
    theirs, ours = layer_pair(kind)
    x = torch.randn(T, B, I, device="cuda")
    hx = random_hx(theirs)
    assert errors(ours, x) == errors(theirs, x)
    assert errors(ours, x.cpu(), random_hx(theirs, device="cuda")) == errors(
        theirs, x.cpu(), random_hx(theirs, device="cuda")
    )
    theirs.cuda(), ours.cuda()
    assert errors(ours, x.cpu()) == errors(theirs, x.cpu())
    assert errors(ours, x, hx) == errors(theirs, x, hx)
    kind_, message = errors(ours, x.cpu())
    assert kind_ is RuntimeError
    assert "not at the same device" in message


def test_the_two_directions_share_the_gpu(ran):
    """On streams of their own, and the same numbers again and again."""
    net = fastrnn.LSTM(64, 128, num_layers=3, bidirectional=True, device="cuda")
    x = torch.randn(100, 32, 64, device="cuda")
    expected = [t.clone() for t in (net(x)[0], *gradients_of(net, net(x)[0]))]
    for _ in range(10):
        y = net(x)[0]
        junk = [torch.full((n,), float("nan"), device="cuda") for n in (10**4, 10**5, 10**6)]
        found = gradients_of(net, y)
        del junk
        same([y, *found], expected, rtol=0, atol=0)
