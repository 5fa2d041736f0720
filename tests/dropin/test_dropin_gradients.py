"""Backward passes: subsets, hooks, in-place changes, higher orders, checkpoints, threads."""

from __future__ import annotations

import threading

import pytest
import torch
from dropin_cases import CELLS, LAYERS, B, H, I, T, cell_pair, gradients, layer_pair, leaves, pair, random_hx, same
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.checkpoint import checkpoint

from fastrnn import _C

KINDS = list(LAYERS)
LOOSE = {"rtol": 1e-4, "atol": 1e-5}


def as_tuple(hx):
    return hx if isinstance(hx, tuple) else (hx,)


def call(module, x, *states):
    return module(x, None if not states else (states if len(states) > 1 else states[0]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", [False, True])
def test_any_one_input_may_want_a_gradient(kind, cell):
    theirs, ours = cell_pair(kind) if cell else layer_pair(kind, num_layers=2)
    given = [torch.randn(B, I) if cell else torch.randn(T, B, I), *as_tuple(random_hx(theirs))]
    names = [*range(len(given)), *(n for n, _ in theirs.named_parameters())]
    for wanted in names:
        found = []
        for module in (theirs, ours):
            module.requires_grad_(False)
            tensors = [x.clone() for x in given]
            target = tensors[wanted] if isinstance(wanted, int) else module.get_parameter(wanted)
            target.requires_grad_(True)
            loss = sum(leaf.square().sum() for leaf in leaves(call(module, *tensors)))
            found.append(torch.autograd.grad(loss, target))
        same(found[1], found[0], **LOOSE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", [False, True])
def test_any_one_output_may_be_in_the_loss(kind, cell):
    theirs, ours = cell_pair(kind) if cell else layer_pair(kind, num_layers=2, bidirectional=True)
    x = torch.randn(B, I) if cell else torch.randn(T, B, I)
    for which in range(len(leaves(theirs(x)))):
        expected, actual = (gradients(m, leaves(m(x))[which]) for m in (theirs, ours))
        for name, gradient in expected.items():
            # For a parameter that nothing depends on (the last cell state: the output gate), torch returns zeros or
            # None.
            zeros = torch.zeros_like(theirs.get_parameter(name))
            a, e = (zeros if g is None else g for g in (actual[name], gradient))
            torch.testing.assert_close(a, e, msg=lambda m, n=f"output {which}, {name}": f"{n}: {m}", **LOOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_that_are_expanded_strided_or_of_one_step(kind):
    theirs, ours = layer_pair(kind, batch_first=True)
    x = torch.randn(B, T, I)
    losses = [
        lambda y: y.sum(),
        lambda y: y.mean(),
        lambda y: y[:, -1].square().sum(),
        lambda y: y[::2, 1:3, ::2].square().sum(),
        lambda y: y.transpose(0, 2).reshape(-1)[3:].square().sum(),
    ]
    for loss in losses:
        found = [torch.autograd.grad(loss(m(x)[0]), list(m.parameters())) for m in (theirs, ours)]
        same(found[1], found[0], **LOOSE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"bidirectional": True}, {"batch_first": True}])
def test_outputs_may_be_changed_in_place(kind, options):
    """More than torch can do for an LSTM, where oneDNN keeps the output for the backward pass."""
    _C.set_poison(False)  # fenced memory is handed out as views, which autograd guards from changes
    theirs, ours = layer_pair(kind, **options)
    x = torch.randn(B, T, I)
    found = []
    for module, relu in ((theirs, torch.relu), (ours, torch.relu_)):
        y, last = module(x)
        y = relu(y)
        last = as_tuple(last)[0]
        loss = y.square().sum() + (last.mul_(2.0) if module is ours else last * 2.0).sum()
        found.append(torch.autograd.grad(loss, list(module.parameters())))
    same(found[1], found[0], **LOOSE)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_states_of_a_cell_may_be_changed_in_place(kind):
    _C.set_poison(False)
    theirs, ours = cell_pair(kind)
    x = torch.randn(B, I)
    found = []
    for module in (theirs, ours):
        new = as_tuple(module(x))
        found.append(torch.autograd.grad(sum(s.mul_(0.5).square().sum() for s in new), list(module.parameters())))
    same(found[1], found[0], **LOOSE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["weight_hh_l0", "weight_ih_l0", "input", "state"])
def test_overwriting_what_was_saved_raises_at_backward(kind, what):
    _, ours = layer_pair(kind)
    x = torch.randn(T, B, I, requires_grad=True) * 1.0
    hx = tuple(s.requires_grad_() * 1.0 for s in as_tuple(random_hx(ours)))
    y, _ = call(ours, x, *hx)
    changed = {"input": x, "state": hx[-1]}.get(what)
    with torch.no_grad():
        (getattr(ours, what) if changed is None else changed).mul_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("kind", KINDS)
def test_backward_twice(kind):
    _, ours = layer_pair(kind)
    y = ours(torch.randn(T, B, I))[0].square().sum()
    first = torch.autograd.grad(y, list(ours.parameters()), retain_graph=True)
    same(torch.autograd.grad(y, list(ours.parameters())), first, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, list(ours.parameters()))


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh"])
@pytest.mark.parametrize("cell", [False, True])
def test_numerical_gradients_of_both_orders(kind, cell):
    options = {} if cell else {"bidirectional": True}
    _, ours = (cell_pair if cell else layer_pair)(kind, 2, 2, dtype=torch.float64, **options)
    x = torch.randn(*(() if cell else (3,)), 2, 2, dtype=torch.float64, requires_grad=True)
    states = [s.requires_grad_() for s in as_tuple(random_hx(ours, 2, dtype=torch.float64))]
    names = [n for n, _ in ours.named_parameters()]

    def function(x, *rest):
        weights = dict(zip(names, rest[len(states) :], strict=True))
        hx = rest[: len(states)]
        result = torch.func.functional_call(ours, weights, (x, hx if len(hx) > 1 else hx[0]))
        return tuple(leaves(result))

    given = (x, *states, *ours.parameters())
    assert gradcheck(function, given, fast_mode=True)
    assert gradgradcheck(function, given, fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_penalty(kind):
    """The double backward pass of a training loop."""
    theirs, ours = layer_pair(kind, num_layers=2)
    x = torch.randn(T, B, I)
    found = []
    for module in (theirs, ours):
        fresh = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(module(fresh)[0].square().sum(), fresh, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), list(module.parameters()), allow_unused=True))
    for actual, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(actual, expected, **LOOSE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "eval"])
def test_modes(kind, mode):
    theirs, ours = layer_pair(kind, num_layers=2)
    x = torch.randn(T, B, I)
    if mode == "eval":
        theirs.eval(), ours.eval()
        same(gradients(ours, ours(x)), gradients(theirs, theirs(x)), **LOOSE)
        return
    with getattr(torch, mode)():
        y, last = ours(x)
        same((y, last), theirs(x), **LOOSE)
    assert not y.requires_grad
    assert y.is_inference() == (mode == "inference_mode")


@pytest.mark.parametrize("kind", KINDS)
def test_module_parameter_and_tensor_hooks(kind):
    theirs, ours = layer_pair(kind)
    x = torch.randn(T, B, I)
    heard = {theirs: [], ours: []}
    for m in (theirs, ours):
        log = heard[m].append
        m.register_forward_pre_hook(lambda m, args, log=log: log(("pre", len(args))))
        m.register_forward_hook(lambda m, args, out, log=log: log(("after", out[0].shape)))
        m.register_full_backward_hook(lambda m, gi, go, log=log: log(("backward", gi[0].shape, go[0].shape)))
        m.weight_hh_l0.register_hook(lambda g, log=log: log(("weight", g.shape)))
        m.weight_hh_l0.register_post_accumulate_grad_hook(lambda p, log=log: log(("accumulated", p.grad.shape)))
        m.register_forward_hook(lambda m, args, out: (out[0] * 2, out[1]))
        y = m(x.clone().requires_grad_())[0]
        y.register_hook(lambda g, log=log: log(("output", g.shape)))
        y.sum().backward()
    assert heard[ours] == heard[theirs]
    assert len(heard[ours]) == 6
    same(ours.weight_hh_l0.grad, theirs.weight_hh_l0.grad, **LOOSE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint(kind, reentrant):
    theirs, ours = layer_pair(kind, num_layers=2, dropout=0.5)
    x = torch.randn(T, B, I)
    found = []
    for module, kept in ((theirs, False), (ours, False), (ours, True)):
        torch.manual_seed(0)
        fresh = x.clone().requires_grad_()
        y = checkpoint(module, fresh, use_reentrant=reentrant)[0] if kept else module(fresh)[0]
        module.zero_grad()
        y.square().sum().backward()
        found.append([fresh.grad, *(p.grad.clone() for p in module.parameters())])
    same(found[1], found[0], **LOOSE)
    same(found[2], found[1], **LOOSE)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("kind", KINDS)
def test_saved_tensors_hooks_and_anomaly_mode(kind):
    _, ours = layer_pair(kind)
    x = torch.randn(T, B, I)
    expected = gradients(ours, ours(x))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t.clone(), lambda t: t):
        result = ours(x)
    same(gradients(ours, result), expected)
    assert kept
    with torch.autograd.graph.save_on_cpu():
        same(gradients(ours, ours(x)), expected)
    with torch.autograd.detect_anomaly(check_nan=True):
        same(gradients(ours, ours(x)), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_run_follows_torchs(kind):
    theirs, ours = layer_pair(kind, num_layers=2, dropout=0.25, bidirectional=True)
    losses = []
    for module in (theirs, ours):
        torch.manual_seed(1)
        optimizer = torch.optim.Adam(module.parameters(), 1e-2)
        losses.append([])
        for _ in range(20):
            optimizer.zero_grad()
            x = torch.randn(T, B, I)
            loss = (module(x)[0].sum(-1) - x.cumsum(0).sum(-1)).square().mean()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    same(list(ours.parameters()), list(theirs.parameters()), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_many_threads_call_one_module(kind):
    _, ours = layer_pair(kind, num_layers=2)
    x = torch.randn(T, B, I)
    expected, found = gradients(ours, ours(x)), [None] * 8

    def work(index):
        found[index] = gradients(ours, ours(x))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in found:
        same(one, expected)


@pytest.mark.parametrize("name", [v[0] for v in CELLS.values()][:3])
def test_a_loop_over_a_cell(name):
    theirs, ours = pair(name, I, H)
    x = torch.randn(T, B, I)
    found = []
    for module in (theirs, ours):
        hx, outputs = None, []
        for t in range(T):
            hx = module(x[t], hx)
            outputs.append(as_tuple(hx)[0])
        found.append((outputs, gradients(module, outputs)))
    same(found[1], found[0], **LOOSE)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, {}) for kind in KINDS),
        ("lstm", {"proj_size": 2}),
        ("lstm", {"proj_size": 2, "num_layers": 2, "bidirectional": True}),
    ],
    ids=str,
)
def test_outputs_depend_on_what_torchs_depend_on(kind, options, steps, packed):
    """Flags of all outputs, and which gradients there are, for any one input or two that require one."""
    modules = layer_pair(kind, **options)
    states = as_tuple(random_hx(modules[0]))
    names = ["x", *range(len(states)), *(n for n, _ in modules[0].named_parameters())]
    for wanted in (*((n,) for n in names), *((n, "weight_hr_l0") for n in names if options and n != "weight_hr_l0")):
        found = []
        for module in modules:
            given = {"x": torch.ones(steps, B, I), **{k: s.clone() for k, s in enumerate(states)}}
            given.update(module.named_parameters())
            for name, t in given.items():
                t.requires_grad_(name in wanted)
            x = pack_padded_sequence(given["x"], torch.full((B,), steps)) if packed else given["x"]
            outputs = [
                y.data if isinstance(y, PackedSequence) else y
                for y in leaves(call(module, x, *(given[k] for k in range(len(states)))))
            ]
            depends = [
                [
                    g is not None
                    for g in torch.autograd.grad(
                        o.sum(), [given[n] for n in wanted], retain_graph=True, allow_unused=True
                    )
                ]
                for o in outputs
                if o.requires_grad
            ]
            found.append(([o.requires_grad for o in outputs], depends))
        assert found[1] == found[0], wanted
