"""Parameters and what is done to them between calls: state dicts, and every way to change or to compute a weight."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from dropin_cases import CELLS, LAYERS, B, H, I, T, cell_pair, layer_pair, pair, same, same_training
from torch import nn
from torch.nn.utils import parameters_to_vector, parametrizations, parametrize, prune, vector_to_parameters

import fastrnn

KINDS = list(LAYERS)
NAMES = ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"]
LOOSE = {"rtol": 1e-4, "atol": 1e-5}
TIGHT = {"rtol": 1e-7, "atol": 1e-9}


def deep(kind: str, **options):
    return layer_pair(kind, num_layers=2, bidirectional=True, **options)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bias", [True, False])
def test_same_parameters_and_generator_from_the_same_seed(name, bias):
    builds = []
    for module in (nn, fastrnn):
        torch.manual_seed(3)
        built = getattr(module, name)(I, H, bias=bias)
        builds.append((list(built.named_parameters()), torch.random.get_rng_state()))
    (expected, state), (actual, other) = builds
    assert [n for n, _ in actual] == [n for n, _ in expected]
    same([p for _, p in actual], [p for _, p in expected], rtol=0, atol=0)
    assert torch.equal(state, other)


def test_positional_arguments_are_in_torchs_order():
    same_build = [
        ("LSTM", (3, 6, 2, False, True, 0.25, True, 2, "cpu", torch.float64)),
        ("GRU", (3, 6, 2, False, True, 0.25, True, 0, "cpu", torch.float64)),
        ("RNN", (3, 6, 2, "relu", False, True, 0.25, True, 0, "cpu", torch.float64)),
        ("LSTMCell", (3, 6, False, "cpu", torch.float64)),
        ("GRUCell", (3, 6, False, "cpu", torch.float64)),
        ("RNNCell", (3, 6, False, "relu", "cpu", torch.float64)),
    ]
    for name, arguments in same_build:
        theirs, ours = pair(name, *arguments)
        assert repr(ours) == repr(theirs)
        same(list(ours.parameters()), list(theirs.parameters()), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_defaults_and_devices(name):
    for builder in (nn, fastrnn):
        torch.set_default_dtype(torch.float64)
        try:
            assert getattr(builder, name)(I, H).weight_ih_l0.dtype if "Cell" not in name else True
            assert next(getattr(builder, name)(I, H).parameters()).dtype is torch.float64
        finally:
            torch.set_default_dtype(torch.float32)
        with torch.device("meta"):
            module = getattr(builder, name)(I, H)
        assert all(p.is_meta for p in module.parameters())
        module = module.to_empty(device="cpu")
        assert not any(p.is_meta for p in module.parameters())
        module.reset_parameters()
        assert all(p.abs().max() <= H**-0.5 for p in module.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_skip_init_and_signature(name):
    theirs, ours = getattr(nn, name), getattr(fastrnn, name)
    found = dict(inspect.signature(ours.__init__).parameters)
    own = found.pop("learn_initial_state")
    assert own.kind is own.KEYWORD_ONLY
    assert own.default is False
    expected = inspect.signature(theirs.__init__).parameters
    assert [(p.name, p.kind, p.default) for p in found.values()] == [
        (p.name, p.kind, p.default) for p in expected.values()
    ]
    if "Cell" in name:
        assert nn.utils.skip_init(ours, I, H).weight_hh.shape == theirs(I, H).weight_hh.shape
        return
    for cls in (theirs, ours):
        with pytest.raises(RuntimeError, match="device"):
            nn.utils.skip_init(cls, I, H)


@pytest.mark.parametrize("kind", KINDS)
def test_state_dicts_go_both_ways(kind):
    theirs, ours = deep(kind)
    x = torch.randn(T, B, I)
    for source, target in ((theirs, ours), (ours, theirs)):
        with torch.no_grad():
            for weight in source.parameters():
                weight.add_(0.01 * torch.randn_like(weight))
        state = source.state_dict()
        assert list(state) == list(target.state_dict())
        assert state._metadata == target.state_dict()._metadata
        for assign in (False, True):
            found = target.load_state_dict(state, strict=True, assign=assign)
            assert not found.missing_keys
            assert not found.unexpected_keys
            same(ours(x), theirs(x), **LOOSE)
        target.load_state_dict(copy.deepcopy(state), assign=True)


def test_wrong_state_is_refused_in_the_same_words():
    theirs, ours = pair("LSTM", I, H)
    for state in (nn.LSTM(I, H + 1).state_dict(), nn.LSTM(I, H, 2).state_dict(), nn.GRU(I, H).state_dict(), {}):
        errors = []
        for module in (theirs, ours):
            with pytest.raises(RuntimeError) as caught:
                module.load_state_dict(state)
            errors.append(str(caught.value))
        assert errors[0] == errors[1]


@pytest.mark.parametrize("kind", KINDS)
def test_each_call_sees_the_weights_of_the_moment(kind):
    theirs, ours = deep(kind)
    x = torch.randn(T, B, I)

    def vector(m):
        vector_to_parameters(parameters_to_vector(m.parameters()) * 0.5, m.parameters())

    def swap(m):
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            m.double().float()
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)
        m.weight_hh_l1.sub_(0.25)

    changes = [
        lambda m: m.weight_hh_l0.data.mul_(0.5),
        lambda m: m.weight_hh_l0.data.copy_(m.weight_hh_l0.data + 0.125),
        lambda m: setattr(m.weight_ih_l1, "data", m.weight_ih_l1.data * 2),
        lambda m: m.load_state_dict({key: value * 0.75 for key, value in m.state_dict().items()}),
        lambda m: setattr(m, "weight_hh_l0_reverse", nn.Parameter(m.weight_hh_l0_reverse.detach() + 0.1)),
        vector,
        swap,
        lambda m: nn.init.constant_(m.bias_hh_l0, 0.25),
        lambda m: m.apply(lambda sub: [nn.init.zeros_(p) for n, p in sub.named_parameters() if "bias_ih" in n]),
        lambda m: m.bias_ih_l0.untyped_storage().copy_(torch.ones_like(m.bias_ih_l0).untyped_storage()),
        lambda m: m.double().float(),
    ]
    same(ours(x), theirs(x), **LOOSE)
    for change in changes:
        for module in (theirs, ours):
            with torch.no_grad():
                change(module)
        same_training(theirs, ours, lambda m, x: m(x), x, **LOOSE)
    same(ours._flat_weights, theirs._flat_weights)


def each_weight(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters() if "weight_hh" in name or "weight_ih" in name]


WEIGHTS = {
    "weight_norm": lambda m, name: parametrizations.weight_norm(m, name),
    "old weight_norm": lambda m, name: nn.utils.weight_norm(m, name),
    "spectral_norm": lambda m, name: parametrizations.spectral_norm(m, name),
    "old spectral_norm": lambda m, name: nn.utils.spectral_norm(m, name),
    "orthogonal": lambda m, name: parametrizations.orthogonal(m, name),
    "pruning": lambda m, name: prune.random_unstructured(m, name, amount=0.3),
    "two parametrizations": lambda m, name: (
        parametrize.register_parametrization(m, name, nn.Tanh()),
        parametrize.register_parametrization(m, name, nn.Softsign()),
    ),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*weight_norm.*")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", [False, True])
@pytest.mark.parametrize("way", list(WEIGHTS))
def test_computed_weights(kind, cell, way):
    # In float64, as a spectral norm that has not turned yet gives large weights.
    theirs, ours = cell_pair(kind, dtype=torch.float64) if cell else deep(kind, dtype=torch.float64)
    x = torch.randn(*((B, I) if cell else (T, B, I)), dtype=torch.float64)
    for module in (theirs, ours):
        torch.manual_seed(5)
        for name in each_weight(module):
            WEIGHTS[way](module, name)
        module.eval()  # a spectral norm in training turns with every read, and torch reads more often
    assert repr(ours) == repr(theirs)
    assert isinstance(ours, getattr(nn, (CELLS if cell else LAYERS)[kind][0]))
    same_training(theirs, ours, lambda m, x: m(x), x, **TIGHT)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    with torch.no_grad():
        for module in (theirs, ours):
            for weight in module.parameters():
                weight.mul_(0.75)
    same(ours(x), theirs(x), **TIGHT)
    ours.load_state_dict(theirs.state_dict())
    if "old" not in way and way != "pruning":
        twin = copy.deepcopy(ours)
        assert type(twin).__name__ == type(ours).__name__
        same(twin(x), theirs(x), **TIGHT)
        for name in list(theirs.parametrizations):
            for module in (theirs, ours):
                parametrize.remove_parametrizations(module, name)
        assert type(ours) is getattr(fastrnn, (CELLS if cell else LAYERS)[kind][0])
        assert list(ours.state_dict()) == list(theirs.state_dict())
        same_training(theirs, ours, lambda m, x: m(x), x, **TIGHT)
        assert parametrize.is_parametrized(twin)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh"])
@pytest.mark.parametrize("cell", [False, True])
def test_a_weight_is_read_once_in_a_call(kind, cell):
    class Counting(nn.Module):
        calls = 0

        def forward(self, weight):
            self.calls += 1
            return weight * 1.0

    _, ours = cell_pair(kind) if cell else deep(kind)
    counters = []
    for name in each_weight(ours):
        counters.append(Counting())
        parametrize.register_parametrization(ours, name, counters[-1])
    before = [c.calls for c in counters]
    ours(torch.randn(B, I) if cell else torch.randn(T, B, I))
    assert [c.calls - b for c, b in zip(counters, before, strict=True)] == [1] * len(counters)


@pytest.mark.parametrize("kind", KINDS)
def test_weight_drop(kind):
    """The recipe of AWD-LSTM: a tensor computed anew before each call takes the parameter's name."""
    theirs, ours = layer_pair(kind)
    for module in (theirs, ours):
        raw = module.weight_hh_l0
        del module._parameters["weight_hh_l0"]
        module.register_parameter("weight_hh_l0_raw", nn.Parameter(raw.data))
    x = torch.randn(T, B, I)

    def call(module, x):
        torch.manual_seed(7)
        for _ in range(2):
            module.weight_hh_l0 = nn.functional.dropout(module.weight_hh_l0_raw, 0.5)
        return module(x)

    for _ in range(2):
        same_training(theirs, ours, call, x, **LOOSE)
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_a_users_own_attribute_lookup_is_asked():
    class Halved(fastrnn.GRU):
        def __getattr__(self, name):
            value = super().__getattr__(name)
            return value * 0.5 if name == "weight_hh_l0" else value

    torch.manual_seed(0)
    halved, plain = Halved(I, H), fastrnn.GRU(I, H)
    plain.load_state_dict(halved.state_dict())
    plain.weight_hh_l0.data.mul_(0.5)
    x = torch.randn(T, B, I)
    same(halved(x), plain(x))


@pytest.mark.parametrize("kind", KINDS)
def test_tied_and_frozen_weights(kind):
    theirs, ours = layer_pair(kind, I, I, num_layers=2)
    for module in (theirs, ours):
        module.weight_hh_l1 = module.weight_hh_l0
        module.weight_ih_l1 = module.weight_hh_l0
    assert len(list(ours.parameters())) == len(list(theirs.parameters())) == 6
    same_training(theirs, ours, lambda m, x: m(x), torch.randn(T, B, I), **LOOSE)
    for module in (theirs, ours):
        module.bias_hh_l0.requires_grad_(False)
        module.weight_ih_l0.requires_grad_(False)
    y = ours(torch.randn(T, B, I))[0].sum()
    y.backward()
    assert ours.weight_ih_l0.grad is None
    assert ours.bias_hh_l0.grad is None
    assert ours.weight_hh_l0.grad is not None


@pytest.mark.parametrize("name", NAMES)
def test_all_frozen_needs_no_gradient(name):
    _, ours = pair(name, I, H)
    ours.requires_grad_(False)
    x = torch.randn(B, I) if "Cell" in name else torch.randn(T, B, I)
    assert not any(leaf.requires_grad for leaf in torch.utils._pytree.tree_leaves(ours(x)))
    assert all(leaf.requires_grad for leaf in torch.utils._pytree.tree_leaves(ours(x.requires_grad_())))


@pytest.mark.parametrize("kind", KINDS)
def test_shared_memory_and_replicas(kind):
    theirs, ours = deep(kind)
    x = torch.randn(T, B, I)
    assert ours.share_memory() is ours
    assert all(p.is_shared() for p in ours.parameters())
    same(ours(x), theirs(x), **LOOSE)
    replica = ours._replicate_for_data_parallel()
    assert type(replica) is type(ours)
    assert replica._flat_weights is not ours._flat_weights
    for name in ours._flat_weights_names:  # as torch.nn.parallel.replicate fills it
        setattr(replica, name, getattr(ours, name) * 1.0)
    same(replica(x), theirs(x), **LOOSE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtype_moves(kind, dtype):
    theirs, ours = deep(kind)
    x = torch.randn(T, B, I)
    theirs.to(dtype), ours.to(dtype)
    assert ours(x.to(dtype))[0].dtype is dtype
    theirs.to(torch.float32), ours.to(torch.float32)
    same(ours(x), theirs(x), **LOOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_put_into_the_list_of_weights(kind):
    """Old recipes of weight drop assign torch's private list, or elements of it."""
    theirs, ours = deep(kind)
    x = torch.randn(T, B, I)

    def assign(module):
        module._flat_weights = [w.detach() * 0.5 for w in module._flat_weights]

    def assign_one(module):
        module._flat_weights[1] = module.weight_hh_l0.detach() * 2.0

    def attribute(module):  # puts the new parameter into the list as well
        module.weight_hh_l0 = nn.Parameter(module.weight_hh_l0.detach() * 3.0)

    for change in (assign, assign_one, lambda m: m.double().float(), assign_one, attribute, assign_one):
        for module in (theirs, ours):
            change(module)
        same_training(theirs, ours, lambda m, x: m(x), x, **LOOSE)
        for packed in (False, True):
            given = nn.utils.rnn.pack_padded_sequence(x, [T] * B) if packed else x
            same(ours(given), theirs(given), **LOOSE)
    replaced = {name: w.detach() * 0.25 for name, w in theirs.named_parameters()}
    found = [torch.func.functional_call(module, replaced, (x,)) for module in (ours, theirs)]
    same(found[0], found[1], **LOOSE)


def test_tensors_put_into_the_list_of_weights_when_compiled():
    theirs, ours = layer_pair("gru")
    for module in (theirs, ours):
        module._flat_weights[1] = module.weight_hh_l0.detach() * 2.0
    x = torch.randn(T, B, I)
    same(torch.compile(ours, fullgraph=True, backend="eager")(x), theirs(x), **LOOSE)
    expected, state = theirs(x[:1])
    same(ours.step(x[0]), (expected[0], state), **LOOSE)
