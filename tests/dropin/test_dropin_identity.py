"""Being a torch.nn module: isinstance and everything that is done with classes, copies, pickles, subclasses."""

from __future__ import annotations

import abc
import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from dropin_cases import B, I, T, cell_pair, layer_pair, pair, same
from torch import nn

import fastrnn

LAYER_NAMES = ["LSTM", "GRU", "RNN"]
CELL_NAMES = ["LSTMCell", "GRUCell", "RNNCell"]
NAMES = LAYER_NAMES + CELL_NAMES


class Doubled(fastrnn.LSTM):
    """A user's subclass: another forward on top of ours, and another initialisation."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.factor = 2.0

    def reset_parameters(self):
        for weight in self.parameters():
            nn.init.constant_(weight, 0.125)

    def forward(self, x, hx=None):
        y, hx = super().forward(x, hx)
        return self.factor * y, hx


class OldStyle(fastrnn.GRU):
    def __init__(self, *args):
        super(self.__class__, self).__init__(*args)  # a bad old habit, which works with torch.nn


class Abstract(fastrnn.RNN, abc.ABC):
    pass


class Registered(fastrnn.GRU):
    known: list = []  # noqa: RUF012

    def __init_subclass__(cls, **kwargs):
        Registered.known.append(cls.__name__)
        super().__init_subclass__(**kwargs)


class RegisteredChild(Registered):
    pass


@pytest.mark.parametrize("name", NAMES)
def test_isinstance(name):
    theirs, ours = pair(name, I, 4)
    assert isinstance(ours, getattr(nn, name))
    assert isinstance(ours, getattr(fastrnn, name))
    assert isinstance(ours, nn.RNNCellBase if name in CELL_NAMES else nn.RNNBase)
    assert isinstance(ours, nn.Module)
    assert not isinstance(theirs, getattr(fastrnn, name))
    for other in NAMES:
        if other != name:
            assert not isinstance(ours, getattr(nn, other))
            assert not isinstance(ours, getattr(fastrnn, other))
    assert issubclass(ours.__class__, getattr(nn, name))
    assert issubclass(ours.__class__, getattr(fastrnn, name))


@pytest.mark.parametrize("name", NAMES)
def test_names(name):
    theirs, ours = pair(name, I, 4)
    assert type(ours).__name__ == ours.__class__.__name__ == ours._get_name() == name
    assert repr(ours) == repr(theirs)
    assert type(ours) is getattr(fastrnn, name)


@pytest.mark.parametrize("name", NAMES)
def test_the_class_derives_from_torchs(name):
    _, m = pair(name, I, 4)
    ours, theirs = getattr(fastrnn, name), getattr(nn, name)
    assert m.__class__ is type(m) is ours
    assert issubclass(ours, theirs)
    assert ours._torch_class is theirs
    assert ours.__mro__.index(theirs) > max(k for k, cls in enumerate(ours.__mro__) if "fastrnn" in cls.__module__)


@pytest.mark.parametrize("name", NAMES)
def test_classes_with_other_metaclasses(name):
    """Made by frameworks of probabilistic programming and plug-ins: a class over the class of a module."""

    class Meta(type):
        pass

    class Marked(metaclass=Meta):
        pass

    _, m = pair(name, I, 4)
    for base in (abc.ABC, Marked):
        mixed = type(base)("Mixed", (base, m.__class__), {})(I, 4)
        assert isinstance(mixed, getattr(nn, name))
        assert mixed(torch.randn(2, I))[0].shape[-1] == 4
    m.__class__ = abc.ABCMeta("Abstract", (m.__class__, abc.ABC), {})
    assert type(m).__name__ == "Abstract"


@pytest.mark.parametrize("cls", [Doubled, OldStyle, Abstract, RegisteredChild])
def test_subclasses(cls):
    m = cls(I, 4)
    assert type(m) is cls
    assert m.__class__ == cls
    assert isinstance(m, cls._torch_class)
    assert isinstance(m, m.__class__)
    assert isinstance(m, cls.__bases__[0](I, 4).__class__)
    assert issubclass(cls, cls.__bases__[0](I, 4).__class__)
    assert type(pickle.loads(pickle.dumps(m))) is cls
    assert type(copy.deepcopy(m)) is cls
    assert repr(m) == f"{cls.__name__}({I}, 4)"
    assert m(torch.randn(T, B, I))[0].shape == (T, B, 4)


def test_what_a_subclass_overrides_is_called():
    m, plain = Doubled(I, 4), fastrnn.LSTM(I, 4)
    assert all((weight == 0.125).all() for weight in m.parameters())
    plain.load_state_dict(m.state_dict())
    x = torch.randn(T, B, I)
    same(m(x)[0], 2 * plain(x)[0])


def test_the_users_class_hooks_see_their_own_classes_only():
    assert isinstance(RegisteredChild(I, 4), nn.GRU)
    assert Registered.known == ["RegisteredChild"]


def test_single_dispatch_and_matching():
    import functools

    @functools.singledispatch
    def kind(module):
        return "other"

    kind.register(nn.LSTM, lambda module: "lstm")
    kind.register(nn.GRU, lambda module: "gru")
    assert [kind(getattr(fastrnn, name)(I, 4)) for name in LAYER_NAMES] == ["lstm", "gru", "other"]
    match fastrnn.LSTM(I, 4):
        case nn.GRU():
            raise AssertionError
        case nn.LSTM(hidden_size=4):
            pass
        case _:
            raise AssertionError


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", ["pickle", "deepcopy", "copy", "save", "save safely"])
def test_copies(name, way):
    _, m = pair(name, I, 4)
    m.eval()
    if way == "pickle":
        twins = [pickle.loads(pickle.dumps(m, protocol)) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)]
    elif way == "save":
        buffer = io.BytesIO()
        torch.save(m, buffer)
        buffer.seek(0)
        twins = [torch.load(buffer, weights_only=False)]
    elif way == "save safely":
        buffer = io.BytesIO()
        torch.save(m, buffer)
        buffer.seek(0)
        with torch.serialization.safe_globals([getattr(fastrnn, name)]):
            twins = [torch.load(buffer, weights_only=True)]
    else:
        twins = [getattr(copy, way)(m)]
    x = torch.randn(B, I) if name in CELL_NAMES else torch.randn(T, B, I)
    for twin in twins:
        assert type(twin) is type(m)
        assert not twin.training
        same(twin(x), m(x), rtol=0, atol=0)
        shares = twin.weight_hh_l0 is m.weight_hh_l0 if name in LAYER_NAMES else twin.weight_hh is m.weight_hh
        assert shares == (way == "copy")


@pytest.mark.parametrize("name", LAYER_NAMES)
def test_a_copy_follows_its_own_weights(name):
    _, m = pair(name, I, 4)
    x = torch.randn(T, B, I)
    expected = m(x)[0]
    twin = copy.deepcopy(m)
    with torch.no_grad():
        for weight in twin.parameters():
            weight.zero_()
    same(m(x)[0], expected)
    assert twin._flat_weights[0] is twin.weight_ih_l0
    assert not twin(x)[0].any()


@pytest.mark.parametrize("name", LAYER_NAMES)
def test_pickles_of_modules_from_before_projections(name):
    theirs, ours = pair(name, I, 4, 2, bidirectional=True)
    x = torch.randn(T, B, I)
    state = {key: value for key, value in ours.__getstate__().items() if key not in ("proj_size", "_all_weights")}
    names = [list(group) for group in ours._all_weights]
    for all_weights in (names, [[getattr(ours, w) for w in group] for group in names]):
        old = type(ours).__new__(type(ours))
        old.__setstate__({**copy.copy(state), "all_weights": all_weights})
        assert old.proj_size == 0
        same(old(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LAYER_NAMES)
def test_public_attributes_and_methods(name):
    theirs, ours = pair(name, I, 4, 2, bidirectional=True)
    assert ours.__constants__ == theirs.__constants__
    public = [attribute for attribute in dir(theirs) if not attribute.startswith("__")]
    missing = [attribute for attribute in public if not hasattr(ours, attribute)]
    assert not missing
    for attribute in public:
        if isinstance(getattr(theirs, attribute), (int, float, bool, str)):
            assert getattr(ours, attribute) == getattr(theirs, attribute), attribute
    same(ours.all_weights, theirs.all_weights)
    same(ours._flat_weights, theirs._flat_weights)
    assert ours._flat_weights_names == theirs._flat_weights_names
    assert ours.flatten_parameters() is None
    x, sizes = torch.randn(T, B, I), torch.tensor([4, 3, 1])
    assert ours.get_expected_hidden_size(x, None) == theirs.get_expected_hidden_size(x, None)
    assert ours.get_expected_hidden_size(x[0], sizes) == theirs.get_expected_hidden_size(x[0], sizes)
    if name == "LSTM":
        assert ours.get_expected_cell_size(x, None) == theirs.get_expected_cell_size(x, None)
    ours.check_input(x, None)
    hx = torch.randn(4, B, 4)
    hx = (hx, hx) if name == "LSTM" else hx
    ours.check_forward_args(x, hx, None)
    order = torch.tensor([2, 0, 3, 1])
    same(ours.permute_hidden(hx, order), theirs.permute_hidden(hx, order))
    with pytest.raises(RuntimeError):
        ours.check_forward_args(x, hx[0] if name == "LSTM" else hx[:1], None)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_compiles_without_a_break(kind, batch_first):
    theirs, ours = layer_pair(kind, num_layers=2, bidirectional=True, batch_first=batch_first)
    x = torch.randn(B, T, I)
    compiled = torch.compile(ours, fullgraph=True, backend="eager")
    same(compiled(x), theirs(x), rtol=1e-4, atol=1e-5)
    assert isinstance(ours, theirs.__class__)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh"])
def test_a_cell_compiles_without_a_break(kind):
    theirs, ours = cell_pair(kind)
    x = torch.randn(B, I)
    same(torch.compile(ours, fullgraph=True, backend="eager")(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_a_model_with_a_user_subclass_compiles_without_a_break():
    model = nn.Sequential(nn.Linear(I, I), Doubled(I, 4))
    x = torch.randn(T, B, I)
    same(torch.compile(model, fullgraph=True, backend="eager")(x), model(x), rtol=1e-4, atol=1e-5)
    normed = nn.Sequential(fastrnn.LSTM(I, 4))
    nn.utils.parametrizations.weight_norm(normed[0], "weight_hh_l0")
    same(torch.compile(normed, fullgraph=True, backend="eager")(x), normed(x), rtol=1e-4, atol=1e-5)


def test_a_class_of_a_notebook_travels_by_value(tmp_path):
    """Ray, joblib and notebooks pickle classes of ``__main__`` by value."""
    pytest.importorskip("cloudpickle")
    sending = """
import sys, cloudpickle, torch, fastrnn
class Mine(fastrnn.LSTM):
    def forward(self, x):
        return 2 * super().forward(x)[0]
m, x = Mine(3, 4), torch.randn(5, 2, 3)
assert torch.equal(cloudpickle.loads(cloudpickle.dumps(m))(x), m(x))
with open(sys.argv[1], "wb") as file:
    cloudpickle.dump((Mine, m, x, m(x).detach()), file)
"""
    receiving = """
import pickle, sys, torch
with open(sys.argv[1], "rb") as file:
    Mine, m, x, y = pickle.load(file)
assert torch.equal(m(x), y) and type(m) is Mine and isinstance(m, torch.nn.LSTM) and Mine(3, 4)(x).shape == (5, 2, 4)
"""
    for code in (sending, receiving):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "sent")], check=True, timeout=120)
