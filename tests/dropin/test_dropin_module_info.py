"""Our classes under the module database that torch tests its own modules with."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from dropin_cases import gradients, leaves, same
from torch import nn

import fastrnn
from fastrnn import _torch

pytest.importorskip("expecttest", reason="torch's test code needs it")
common_modules = pytest.importorskip("torch.testing._internal.common_modules")
# torch's test code forbids to set torch.backends in the whole process; the tests after this one may.
torch.backends.disable_global_flags.__globals__["__allow_nonbracketed_mutation_flag"] = True

NAMES = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")
CLASSES = {getattr(nn, name): (getattr(_torch, name), getattr(fastrnn, name)) for name in NAMES}
INFOS = [info for info in common_modules.module_db if info.module_cls in CLASSES]
IDS = [info.module_cls.__name__ for info in INFOS]


def inputs_of(info, dtype, training):
    return info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=training)


def build(info, case, dtype):
    built = []
    for cls in CLASSES[info.module_cls]:
        torch.manual_seed(0)
        built.append(cls(*case.constructor_input.args, **case.constructor_input.kwargs, dtype=dtype))
    return built


def test_all_six_are_in_the_database():
    assert {info.module_cls for info in INFOS} == set(CLASSES)


@pytest.mark.parametrize("info", INFOS, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("training", [True, False])
def test_forward_and_backward(info, dtype, training):
    cases = inputs_of(info, dtype, training)
    assert cases
    for case in cases:
        theirs, ours = build(info, case, dtype)
        theirs.train(training), ours.train(training)
        args, kwargs = case.forward_input.args, case.forward_input.kwargs
        expected, actual = theirs(*args, **kwargs), ours(*args, **kwargs)
        same(actual, expected, rtol=1e-4, atol=1e-5)
        inputs = [x for x in leaves([args, kwargs]) if x.requires_grad]
        same(gradients(ours, actual, *inputs), gradients(theirs, expected, *inputs), rtol=1e-4, atol=1e-5)
        if case.reference_fn is not None:
            reference = case.reference_fn(ours, *args, **kwargs)
            same(leaves(actual), leaves(reference), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("info", INFOS, ids=IDS)
def test_copies_and_text(info):
    for case in inputs_of(info, torch.float32, False):
        theirs, ours = build(info, case, torch.float32)
        theirs.eval(), ours.eval()
        assert repr(ours) == repr(theirs)
        args, kwargs = case.forward_input.args, case.forward_input.kwargs
        expected = ours(*args, **kwargs)
        for twin in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours)):
            same(twin(*args, **kwargs), expected, rtol=0, atol=0)


@pytest.mark.parametrize("info", INFOS, ids=IDS)
def test_errors(info):
    for training in (True, False):
        cases = info.module_error_inputs_func(
            info, device="cpu", dtype=torch.float32, requires_grad=False, training=training
        )
        assert cases
        for case in cases:
            given = case.module_error_input
            on_construction = case.error_on is common_modules.ModuleErrorEnum.CONSTRUCTION_ERROR
            _, cls = CLASSES[info.module_cls]
            if on_construction:
                with pytest.raises(case.error_type, match=case.error_regex):
                    cls(*given.constructor_input.args, **given.constructor_input.kwargs)
            else:
                module = cls(*given.constructor_input.args, **given.constructor_input.kwargs)
                with pytest.raises(case.error_type, match=case.error_regex):
                    module(*given.forward_input.args, **given.forward_input.kwargs)
