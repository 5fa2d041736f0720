"""fastrnn's classes assigned into torch.nn, as many try a drop-in replacement."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dropin_cases import B, I, T, gradients, random_hx, same
from patched_torch_nn import NAMES, patched
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn import _torch
from fastrnn.inspect.layers import layers_of

LOOSE = {"rtol": 1e-4, "atol": 1e-5}
LAYERS = NAMES[:3]


@pytest.fixture(autouse=True)
def _patched():
    with patched():
        yield


def both(name: str, **options) -> tuple[nn.Module, nn.Module]:
    """torch's own module, and what its name in torch.nn gives now, with the same weights."""
    built = []
    for cls in (getattr(_torch, name), getattr(nn, name)):
        torch.manual_seed(0)
        built.append(cls(I, 4, **options))
    assert type(built[1]) is getattr(fastrnn, name)
    return built[0], built[1]


def input_of(name: str, **options) -> torch.Tensor:
    return torch.randn(*((B, I) if "Cell" in name else (T, B, I)), **options)


@pytest.mark.parametrize("name", NAMES)
def test_constructed_and_called(name):
    theirs, ours = both(name)
    x = input_of(name)
    expected, found = theirs(x), ours(x)
    same(found, expected, **LOOSE)
    same(gradients(ours, found), gradients(theirs, expected), **LOOSE)
    assert isinstance(ours, getattr(nn, name))
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("name", LAYERS)
def test_packed_and_stacked(name):
    theirs, ours = both(name, num_layers=2, bidirectional=True)
    packed = pack_padded_sequence(input_of(name), torch.tensor([5, 2, 4, 1]), enforce_sorted=False)
    hx = random_hx(theirs)
    same(ours(packed, hx), theirs(packed, hx), **LOOSE)


@pytest.mark.parametrize("name", NAMES)
def test_what_falls_back_to_torch(name):
    """Complex numbers, backend="torch", torch's errors and tracing all run torch's own forward."""
    theirs, ours = both(name)
    x = input_of(name)
    ours.backend = "torch"
    same(ours(x), theirs(x), rtol=0, atol=0)
    ours.backend = "auto"
    if not theirs.__class__.__name__.startswith("RNN"):
        same(ours.to(torch.complex64)(x.to(torch.complex64)), theirs.to(torch.complex64)(x.to(torch.complex64)))
    for wrong in (torch.randn(2, 3, 4, 5, 6), torch.randn(B, I + 1)):
        errors = []
        for module in (theirs, ours):
            with pytest.raises((ValueError, RuntimeError)) as caught:
                module(wrong)
            errors.append((caught.type, str(caught.value)))
        assert errors[0] == errors[1]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
@pytest.mark.parametrize("name", NAMES)
def test_traced_scripted_and_compiled(name):
    theirs, ours = both(name)
    x = input_of(name)
    same(torch.jit.trace(ours, (x,))(x), theirs(x), **LOOSE)
    if "Cell" not in name:  # torch.nn's own cells call what TorchScript has no source of
        same(torch.jit.script(nn.Sequential(ours))(x), theirs(x), **LOOSE)
    same(torch.compile(ours, fullgraph=True, backend="eager")(x), theirs(x), **LOOSE)
    leaf = torch.fx.symbolic_trace(nn.Sequential(ours))
    same(leaf(x), theirs(x), **LOOSE)


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_pickles(name):
    _, ours = both(name)
    x = input_of(name)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(twin) is type(ours)
        same(twin(x), ours(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_convert_means_torchs_own_classes(name):
    theirs, ours = both(name)
    x = input_of(name)
    assert type(fastrnn.convert(theirs)) is getattr(fastrnn, name)
    for module in (theirs, ours):
        assert type(fastrnn.convert(module, to="torch")) is getattr(_torch, name)
    same(ours(x), theirs(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_learned_states_go_to_torchs_classes(name):
    module = getattr(nn, name)(I, 4, learn_initial_state=True)
    for state, parameter in module.named_parameters():
        if "initial" in state:
            nn.init.constant_(parameter, 0.5)
    x = input_of(name)
    expected = module(x)
    same(fastrnn.convert(module, to="torch")(x), expected, **LOOSE)


def test_subclasses_defined_afterwards():
    class Mine(nn.LSTM):
        def forward(self, x):
            return super().forward(x)[0]

    torch.manual_seed(0)
    theirs = _torch.LSTM(I, 4)
    mine = Mine(I, 4)
    mine.load_state_dict(theirs.state_dict())
    x = input_of("LSTM")
    assert isinstance(mine, fastrnn.LSTM)
    same(mine(x), theirs(x)[0], **LOOSE)


@pytest.mark.parametrize("name", LAYERS)
def test_the_rest_of_the_library(name):
    module = getattr(nn, name)(I, 4)
    x = input_of(name)
    fastrnn.training.weight_drop(module, 0.5)
    module(x)
    fastrnn.init.forget_bias_(nn.LSTM(I, 4), 1.0)
    assert len(layers_of(module)) == len(layers_of(getattr(_torch, name)(I, 4))) == 1
    assert fastrnn.Stream(module).step(x[0]).shape == (B, 4)


@pytest.mark.parametrize("file", ["test_dropin_module_info.py"])
def test_a_process_in_which_torch_nn_was_patched_first(file):
    """torch's own module database is made of what stands in torch.nn when it is imported."""
    folder = Path(__file__).parent
    paths = [str(folder.parent / "harness"), str(folder.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "patched_torch_nn", file]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
