"""Run a case on one side, in every mode: results by name, with None for a gradient that does not exist."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import random
import warnings

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fastrnn

from .case import TRANSFORMS, Case
from .nets import DTYPES, Inputs, Net, state_names

Results = dict[str, Tensor | None]


def run(case: Case, inputs: Inputs, side: str, exact: bool = False, nudge: float = 0.0) -> Results:
    """Compute one side's results. `exact`: in float64, without autocast; `nudge`: relative change of all leaves."""
    dtype = torch.float64 if exact else DTYPES[case.dtype]
    torch.manual_seed(case.values + 1)
    net = Net(case, inputs, side, dtype)
    x, states = inputs.x.detach().to(dtype), [s.detach().to(dtype) for s in inputs.states]
    if nudge:
        x, states = _nudged(net, x, states, nudge, inputs.draw)
    net = _prepared(case, net, x, states)
    torch.manual_seed(case.values + 2)
    autocast = contextlib.nullcontext()
    if case.autocast and not exact:
        autocast = torch.autocast("cpu", DTYPES[case.autocast])
    plain = side == "theirs" and (case.mode in TRANSFORMS or (case.special and case.dtype != "float32"))
    onednn = torch.backends.mkldnn.flags(enabled=False) if plain else contextlib.nullcontext()
    with warnings.catch_warnings(), autocast, onednn:
        warnings.simplefilter("ignore")
        found = _MODES.get(case.mode, _transformed)(case, net, x, states)
    found["generator"] = torch.get_rng_state()
    return found


def _nudged(net: Net, x: Tensor, states: list[Tensor], nudge: float, draw: int):
    g = torch.Generator().manual_seed(draw + int(nudge * 1e18) % 1000003)

    def moved(t: Tensor) -> Tensor:
        return t + t * nudge * (2 * torch.rand(t.shape, generator=g, dtype=torch.float64) - 1).to(t.dtype)

    with torch.no_grad():
        for p in net.parameters():
            p.copy_(moved(p))
    return moved(x), [moved(s) for s in states]


def _prepared(case: Case, net: Net, x: Tensor, states: list[Tensor]) -> Net:
    """Prepare a module as the case asks, before the call under test."""
    if case.extra in ("deepcopy", "pickle", "state_dict", "update"):
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net(x, *states)
    if case.extra == "deepcopy":
        net.net = copy.deepcopy(net.net)
    elif case.extra == "pickle":
        net.net = pickle.loads(pickle.dumps(net.net))
    elif case.extra == "state_dict":
        stored = io.BytesIO()
        torch.save(net.net.state_dict(), stored)
        with torch.no_grad():
            for p in net.net.parameters():
                p.zero_()
        net.net.load_state_dict(torch.load(io.BytesIO(stored.getvalue()), weights_only=True))
    elif case.extra == "update":
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(0.5)
    elif case.extra == "weight_norm":
        name = "weight_hh" if case.form == "cell" else "weight_hh_l0"
        nn.utils.parametrizations.weight_norm(net.net, name)
    return net


def _leaves(case: Case, net: Net, x: Tensor, states: list[Tensor]) -> dict[str, Tensor]:
    named = {} if case.vocabulary else {"x": x}
    named |= dict(zip((f"{n}_0" for n in state_names(case)), states, strict=False))
    return named | dict(net.named_parameters())


def _required(case: Case, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    r = random.Random(case.requires)
    chosen = {}
    for name, leaf in leaves.items():
        # The reference records no gradient for an empty bias, that of a cell without recurrent products.
        wanted = (case.requires == 0 or r.random() < 0.4) and (leaf.numel() > 0 or case.batch == 0)
        leaf.requires_grad_(wanted)
        if wanted:
            chosen[name] = leaf
    return chosen


def _call(case: Case, net: Net, x: Tensor, states: list[Tensor]) -> dict[str, Tensor]:
    if case.extra == "functional_call":
        parameters = {name: p * 1 for name, p in net.named_parameters()}
        return torch.func.functional_call(net, parameters, (x, *states))
    if case.extra in ("checkpoint", "reentrant"):
        names: list[str] = []

        def body(x: Tensor, *states: Tensor):
            found = net(x, *states)
            names[:] = found
            return tuple(found.values())

        values = checkpoint(body, x, *states, use_reentrant=case.extra == "reentrant")
        return dict(zip(names, values, strict=True))
    if case.extra == "compile" and net.side == "ours":
        return torch.compile(net, backend="aot_eager")(x, *states)
    return net(x, *states)


def _train(case: Case, net: Net, x: Tensor, states: list[Tensor]) -> Results:
    leaves = _leaves(case, net, x, states)
    wanted = _required(case, leaves)
    outputs = _call(case, net, x, states)
    found: Results = dict(outputs)
    pairs = [(outputs[n], s) for n, s in net.inputs.seeds(outputs).items() if outputs[n].requires_grad]
    if not pairs:
        return found
    roots, seeds = zip(*pairs, strict=True)
    seeds = [s.to(r.dtype) for r, s in pairs]
    if case.accumulate or case.extra == "reentrant":
        for _ in range(1 + case.accumulate):
            torch.autograd.backward(roots, seeds, retain_graph=case.accumulate)
        gradients = [leaf.grad for leaf in wanted.values()]
    else:
        gradients = torch.autograd.grad(roots, list(wanted.values()), seeds, allow_unused=True)
    return found | {f"d {name}": g for name, g in zip(wanted, gradients, strict=True)}


def _no_grad(case: Case, net: Net, x: Tensor, states: list[Tensor]) -> Results:
    with torch.no_grad():
        return dict(_call(case, net, x, states))


def _inference(case: Case, net: Net, x: Tensor, states: list[Tensor]) -> Results:
    with torch.inference_mode():
        return {name: t.clone() for name, t in _call(case, net, x, states).items()}


def _step(case: Case, net: Net, x: Tensor, states: list[Tensor]) -> Results:
    """Compute the sequence by single calls of `step`; torch.nn runs it at once."""
    if net.side == "theirs":
        return _no_grad(case, net, x, states)
    with torch.no_grad():
        given = net.laid_out(net.as_input(x))
        state = tuple(net._as_passed(s) for s in states)
        state = (state if len(state) > 1 else state[0]) if state else None
        outputs = []
        for t in range(case.T):
            y, state = net.net.step(given[t], state)
            outputs.append(y)
        return _named(case, torch.stack(outputs), state)


def _stream(case: Case, net: Net, x: Tensor, states: list[Tensor]) -> Results:
    if net.side == "theirs":
        return _no_grad(case, net, x, states)
    with torch.no_grad():
        given = net.as_input(x)
        state = tuple(net._as_passed(s) for s in states)
        if case.layout == "unbatched":
            state = tuple(s.unsqueeze(1) for s in state)
        begin = (state if len(state) > 1 else state[0]) if state else None
        stream = fastrnn.Stream(net.net, case.batch if case.values % 2 else None, begin)
        found = None
        for again in range(2):
            outputs = [stream.step(given[t]) for t in range(case.T)]
            result = _named(case, torch.stack(outputs), stream.state)
            if again and any(not torch.equal(result[k], v) for k, v in found.items() if not v.isnan().any()):
                raise AssertionError("stream: expected the same results after reset(), got others")
            found = result
            stream.reset()
            if case.extra == "" and case.values % 3 == 0:
                stream = copy.deepcopy(stream)
                stream.reset()
        if case.layout == "unbatched":
            found = {name: t.squeeze(1) for name, t in found.items()}
        return found


def _named(case: Case, y: Tensor, state) -> Results:
    states = (state,) if isinstance(state, Tensor) else tuple(state)
    return {"y": y, **dict(zip((f"{n}_n" for n in state_names(case)), states, strict=True))}


def _double(case: Case, net: Net, x: Tensor, states: list[Tensor]) -> Results:
    wanted = _required(case, _leaves(case, net, x, states))
    outputs = net(x, *states)
    pairs = [(outputs[n], s) for n, s in net.inputs.seeds(outputs).items() if outputs[n].requires_grad]
    if not pairs:
        return dict(outputs)
    roots, seeds = zip(*pairs, strict=True)
    seeds = [s.requires_grad_(case.requires == 0) for s in seeds]
    first = torch.autograd.grad(roots, list(wanted.values()), seeds, create_graph=True, allow_unused=True)
    loss = [(g * _weights(g, k)).sum() for k, g in enumerate(first) if g is not None and g.requires_grad]
    found = dict(outputs) | {f"d {name}": g for name, g in zip(wanted, first, strict=True)}
    if not loss:
        return found
    leaves = [*wanted.values(), *(s for s in seeds if s.requires_grad)]
    second = torch.autograd.grad(sum(loss), leaves, allow_unused=True)
    names = [*(f"dd {name}" for name in wanted), *(f"dd seed {k}" for k in range(len(leaves) - len(wanted)))]
    return found | {
        name: torch.zeros_like(leaf) if g is None else g for name, leaf, g in zip(names, leaves, second, strict=True)
    }


def _weights(like: Tensor, k: int) -> Tensor:
    g = torch.Generator().manual_seed(77 + k)
    return torch.randn(like.shape, generator=g).to(like.dtype)


def _transformed(case: Case, net: Net, x: Tensor, states: list[Tensor]) -> Results:
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    names: list[str] = []

    def call(parameters, x, *states):
        found = torch.func.functional_call(net, parameters, (x, *states))
        names[:] = found
        return tuple(found.values())

    arguments = (parameters, x, *states)
    if case.mode == "vjp":
        outputs, pull = torch.func.vjp(call, *arguments)
        gradients = pull(tuple(_weights(o, k) for k, o in enumerate(outputs)))
        return _flat(names, outputs) | _flat_gradients(gradients)
    if case.mode == "jvp":
        tangents = (
            {name: _weights(p, k) * 0.1 for k, (name, p) in enumerate(parameters.items())},
            *(_weights(t, 50 + k) for k, t in enumerate((x, *states))),
        )
        outputs, pushed = torch.func.jvp(call, arguments, tangents)
        return _flat(names, outputs) | {f"t {n}": t for n, t in zip(names, pushed, strict=True)}
    return _batched(case, net, call, names, arguments)


def _batched(case: Case, net: Net, call, names: list[str], arguments: tuple) -> Results:
    """Apply vmap over three inputs, to outputs or to gradients; run torch.nn in a loop."""
    parameters, x, *states = arguments
    xs = torch.stack([x, x * 0.5, x + 0.25])
    many = [torch.stack([s, s * 0.5, s * 0.25]) for s in states]

    def gradient(parameters, x, *states):
        def loss(parameters, x, *states):
            outputs = call(parameters, x, *states)
            return sum((o * _weights_inside(o, k)).sum() for k, o in enumerate(outputs))

        return torch.func.grad(loss, argnums=(0, 1))(parameters, x, *states)

    function = gradient if case.mode == "grad_vmap" else call
    if net.side == "ours":
        out = torch.func.vmap(function, in_dims=(None, 0, *(0 for _ in many)))(parameters, xs, *many)
    else:
        rows = [function(parameters, *(t[k] for t in (xs, *many))) for k in range(3)]
        if case.mode == "grad_vmap":
            out = ({n: torch.stack([row[0][n] for row in rows]) for n in parameters}, torch.stack([r[1] for r in rows]))
        else:
            out = tuple(torch.stack(column) for column in zip(*rows, strict=True))
    return _flat_gradients(out) if case.mode == "grad_vmap" else _flat(names, out)


def _weights_inside(like: Tensor, k: int) -> Tensor:
    return torch.linspace(-1, 1 + k, max(1, like.numel()), dtype=like.dtype)[: like.numel()].view(like.shape)


def _flat(names: list[str], outputs) -> Results:
    return dict(zip(names, outputs, strict=True))


def _flat_gradients(gradients) -> Results:
    parameters, *rest = gradients
    return {f"d {n}": g for n, g in parameters.items()} | {f"d input {k}": g for k, g in enumerate(rest)}


_MODES = {
    "train": _train,
    "no_grad": _no_grad,
    "inference": _inference,
    "step": _step,
    "stream": _stream,
    "double": _double,
}
