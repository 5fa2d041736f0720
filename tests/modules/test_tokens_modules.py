"""The modules' keyword ``embedding=``: ids in every layout, and all that an embedding may be."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from dropin_cases import LAYERS, B, H, I, T, cell_pair, gradients, layer_pair, leaves, random_hx, same
from torch import fx, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn
from fastrnn.functional import LayerWeights, sequence

KINDS = list(LAYERS)
SMALL, LARGE = 5, 100  # vocabularies of fewer and of more rows than ids are in a sequence here
LOOSE = {"rtol": 1e-4, "atol": 1e-5}


def embeddings():
    return {
        "plain": nn.Embedding(SMALL, I),
        "large": nn.Embedding(LARGE, I),
        "padding": nn.Embedding(SMALL, I, padding_idx=2),
        "last padding": nn.Embedding(SMALL, I, padding_idx=-1),
        "max_norm": nn.Embedding(SMALL, I, max_norm=0.5),
        "scaled": nn.Embedding(SMALL, I, scale_grad_by_freq=True),
        "frozen": nn.Embedding.from_pretrained(torch.randn(SMALL, I)),
    }


FORMS = ["batch", "batch first", "unbatched", "packed", "lengths", "reset", "deep"]


def call_both(kind, form, embedding, backend=None):
    """Results and gradients of a network given ids, and of one given what they embed to."""
    options = {"num_layers": 2, "bidirectional": True} if form == "deep" else {"batch_first": form == "batch first"}
    results = []
    for tokens in (True, False):
        torch.manual_seed(3)
        _, module = layer_pair(kind, **options)
        module.embedding = own = embeddings()[embedding]
        with torch.no_grad():
            own.weight.copy_(torch.randn(own.weight.shape, generator=torch.Generator().manual_seed(1)))
        if form == "unbatched":
            ids = torch.randint(0, SMALL, (2 * T,))
        else:
            ids = torch.randint(0, SMALL, (B, T) if form == "batch first" else (T, B))
        given = {"embedding": own} if tokens else {}
        given |= {"lengths": [5, 0, 3, 1]} if form == "lengths" else {}
        given |= {"reset": torch.rand(T, B) < 0.4} if form == "reset" else {}
        hx = random_hx(module, None if form == "unbatched" else B)
        if form == "packed":
            packed = pack_padded_sequence(ids, [3, 5, 2, 4], enforce_sorted=False)
            x = packed if tokens else PackedSequence(own(packed.data), *packed[1:])
        else:
            x = ids if tokens else own(ids)
        out = module(x, hx, **given) if backend is None else module(x, hx, backend=backend, **given)
        found = None if embedding == "frozen" else gradients(module, out)
        results.append((out, found, own.weight.detach().clone()))
    return results


@pytest.mark.parametrize("embedding", list(embeddings()))
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_modules(kind, form, embedding):
    found, wanted = call_both(kind, form, embedding)
    exact = embedding in ("large", "max_norm", "scaled")
    same(found, wanted, **({"rtol": 0, "atol": 0} if exact else LOOSE))


@pytest.mark.parametrize("backend", ["reference", "torch", "fused"])
def test_backends_of_modules(backend):
    for form in ("batch", "packed", "unbatched"):
        found, wanted = call_both("gru", form, "padding", backend)
        same(found, wanted, **LOOSE)


def test_padding_index_keeps_its_row():
    embedding = nn.Embedding(SMALL, I, padding_idx=2)
    nn.init.normal_(embedding.weight)
    module = fastrnn.GRU(I, H)
    ids = torch.full((T, B), 2)
    module(ids, embedding=embedding)[0].sum().backward()
    assert not embedding.weight.grad.any()
    assert module.weight_ih_l0.grad.any()


def test_a_matrix_and_sparse_gradients():
    module, ids = fastrnn.LSTM(I, H), torch.randint(0, SMALL, (T, B))
    matrix = torch.randn(SMALL, I, requires_grad=True)
    found, wanted = module(ids, embedding=matrix), module(F.embedding(ids, matrix))
    same(found, wanted, **LOOSE)
    same(*(torch.autograd.grad(r[0].sum(), matrix)[0] for r in (found, wanted)), **LOOSE)
    sparse = nn.Embedding(SMALL, I, sparse=True)
    module(ids, embedding=sparse)[0].sum().backward()
    assert sparse.weight.grad.is_sparse


def test_what_an_embedding_does_besides_is_done():
    module, ids = fastrnn.LSTM(I, H), torch.randint(0, SMALL, (T, B))

    class Shifted(nn.Embedding):
        def forward(self, input):
            return super().forward((input + 1) % self.num_embeddings)

    embedding = Shifted(SMALL, I)
    same(module(ids + 1000, embedding=embedding), module(embedding(ids + 1000)), rtol=0, atol=0)

    plain = nn.Embedding(SMALL, I)
    handle = plain.register_forward_hook(lambda m, a, out: out * 2)
    same(module(ids, embedding=plain), module(F.embedding(ids, plain.weight) * 2), rtol=0, atol=0)
    handle.remove()
    same(module(ids, embedding=plain), module(plain(ids)), **LOOSE)
    handle = nn.modules.module.register_module_forward_hook(
        lambda m, a, out: out * 2 if isinstance(m, nn.Embedding) else out
    )
    same(module(ids, embedding=plain), module(F.embedding(ids, plain.weight) * 2), rtol=0, atol=0)
    handle.remove()

    class Double(nn.Module):
        def forward(self, w):
            return w * 2

    nn.utils.parametrize.register_parametrization(plain, "weight", Double())
    same(module(ids, embedding=plain), module(plain(ids)), rtol=0, atol=0)
    scaled = nn.Sequential(nn.Embedding(SMALL, I), nn.LayerNorm(I))
    same(module(ids, embedding=scaled), module(scaled(ids)), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_may_hold_anything(kind):
    _, module = layer_pair(kind, batch_first=True)
    ids, lengths = torch.randint(0, SMALL, (B, T)), torch.tensor([5, 2, 0, 3])
    odd = torch.where(torch.arange(T) < lengths.unsqueeze(1), ids, -100)
    for vocabulary in (SMALL, LARGE):
        embedding = nn.Embedding(vocabulary, I)
        wanted = module(ids, lengths=lengths, embedding=embedding)
        same(module(odd, lengths=lengths, embedding=embedding), wanted, rtol=0, atol=0)
        weights = LayerWeights(*module.parameters())
        y, _ = sequence(kind, odd.t(), weights, lengths=lengths, embedding=embedding.weight)
        same(y.transpose(0, 1), wanted[0], rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_and_cells(kind):
    embedding = nn.Embedding(SMALL, I)
    _, module = layer_pair(kind, num_layers=2)
    _, cell = cell_pair(kind)
    for ids in (torch.randint(0, SMALL, (B,)), torch.tensor(3), torch.randint(0, SMALL, (2 * SMALL,))):
        same(module.step(ids, embedding=embedding), module.step(embedding(ids)), rtol=0, atol=0)
        same(cell(ids, embedding=embedding), cell(embedding(ids)), rtol=0, atol=0)
        same(cell(ids, embedding=embedding.weight), cell(embedding(ids)), rtol=0, atol=0)


@pytest.mark.parametrize("target", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_autocast(kind, target):
    _, module = layer_pair(kind)
    embedding, ids = nn.Embedding(SMALL, I), torch.randint(0, SMALL, (T, B))
    for context in (torch.enable_grad(), torch.no_grad()):
        with context, torch.autocast("cpu", dtype=target):
            same(module(ids, embedding=embedding), module(embedding(ids)), rtol=0, atol=0)
    w = LayerWeights(*module.parameters())
    wanted, _ = sequence(kind, ids, w, embedding=embedding.weight)
    with torch.autocast("cpu", dtype=target):
        same(sequence(kind, ids, w, embedding=embedding.weight)[0], wanted, rtol=0, atol=0)


class Model(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.embedding = nn.Embedding(SMALL, I, padding_idx=1)
        self.rnn = layer_pair(kind, **options)[1]

    def forward(self, ids, lengths=None):
        return self.rnn(ids, embedding=self.embedding, lengths=lengths)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_compile(kind):
    torch._dynamo.reset()
    model, ids = Model(kind, num_layers=2, bidirectional=True), torch.randint(0, SMALL, (T, B))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found, wanted = compiled(ids), model(ids)
    same(found, wanted, **LOOSE)
    same(gradients(model, found), gradients(model, wanted), **LOOSE)
    with torch.no_grad():
        same(compiled(ids, lengths=torch.tensor([5, 1, 0, 2])), model(ids, lengths=[5, 1, 0, 2]), **LOOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_transforms(kind):
    model, ids = Model(kind), torch.randint(0, SMALL, (3, T, B))
    weights = {name: w.detach() for name, w in model.named_parameters()}

    def loss(weights, ids):
        return functional_call(model, weights, (ids,)).square().sum()

    same(vmap(model)(ids), torch.stack([model(one) for one in ids]), **LOOSE)
    together = vmap(grad(loss), (None, 0))(weights, ids)
    for k, one in enumerate(ids):
        alone = torch.autograd.grad(model(one).square().sum(), list(model.parameters()))
        named = dict(zip(weights, alone, strict=True))
        same({name: g[k] for name, g in together.items()}, named, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated", "ignore::torch.jit.TracerWarning")
def test_traces():
    model, ids = Model("gru"), torch.randint(0, SMALL, (T, B))
    wanted = model(ids)
    same(torch.jit.trace(model, ids)(ids), wanted, **LOOSE)
    traced = fx.symbolic_trace(model, {"lengths": None})
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == ["embedding", "rnn"]
    same(traced(ids), wanted, **LOOSE)


def test_inference_and_empty_batch():
    module, embedding = fastrnn.LSTM(I, H), nn.Embedding(SMALL, I)
    with torch.inference_mode():
        ids = torch.randint(0, SMALL, (T, B))
        same(module(ids, embedding=embedding), module(embedding(ids)), **LOOSE)
    empty = torch.zeros(T, 0, dtype=torch.int64)
    assert module(empty, embedding=embedding)[0].shape == (T, 0, H)
    assert len(leaves(module(empty, embedding=embedding))) == 3


def raises(error_type, match, call):
    with pytest.raises(error_type, match=match):
        call()


def test_errors_of_modules():
    module, embedding = fastrnn.LSTM(I, H), nn.Embedding(SMALL, I)
    ids = torch.zeros(T, B, dtype=torch.int64)
    raises(
        RuntimeError, "input: expected ids in .* got torch.float32", lambda: module(ids.float(), embedding=embedding)
    )
    raises(RuntimeError, "input: .* got torch.bool", lambda: module.step(ids[0].bool(), embedding=embedding))
    raises(
        IndexError,
        "ids from 0 to 4, .* got 0 to 5",
        lambda: module(ids.index_fill(0, ids[0, :1], 5), embedding=embedding),
    )
    raises(IndexError, "got -1 to -1", lambda: module(ids - 1, embedding=embedding.weight))
    raises(IndexError, "got 9 to 9", lambda: module(ids + 9, embedding=embedding, lengths=[T] * B))
    raises(ValueError, r"\(T\) or \(T, B\) .* got \(5, 4, 1\)", lambda: module(ids.unsqueeze(-1), embedding=embedding))
    raises(ValueError, r"\(\) or \(B\) .* got \(5, 4\)", lambda: module.step(ids, embedding=embedding))
    raises(TypeError, "input: expected a tensor of ids .* got list", lambda: module([1], embedding=embedding))
    raises(TypeError, "embedding: expected a torch.nn.Embedding .* got dict", lambda: module(ids, embedding={}))
    raises(TypeError, r"embedding: .* got shape \(3,\)", lambda: module(ids, embedding=torch.zeros(I)))
    raises(
        RuntimeError, r"width input_size, 3, got \(5, 4\)", lambda: module(ids, embedding=nn.Embedding(SMALL, I + 1))
    )
    raises(RuntimeError, "width input_size", lambda: module(ids, embedding=nn.Embedding(LARGE, I + 1)))
    raises(RuntimeError, "hidden", lambda: module(ids, random_hx(module, 2), embedding=embedding))
    raises(ValueError, "lengths: expected shape", lambda: module(ids, embedding=embedding, lengths=[1]))
    raises(ValueError, "lengths: expected shape", lambda: module(ids + 9, embedding=embedding, lengths=[1]))
    packed = PackedSequence(ids, torch.tensor([T]))
    raises(ValueError, r"\(N\) in a PackedSequence", lambda: module(packed, embedding=embedding))
    raises(
        ValueError, r"\(T\) or \(B, T\)", lambda: fastrnn.GRU(I, H, batch_first=True)(ids[None], embedding=embedding)
    )
    raises(IndexError, "input: ", lambda: fastrnn.GRUCell(I, H)(ids[0] + 9, embedding=embedding))
