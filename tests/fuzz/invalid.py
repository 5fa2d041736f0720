"""Random wrong calls: ours raises where torch.nn raises, with the same type."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import plain
from .case import Case
from .foreign import foreign_code
from .nets import DTYPES, Inputs, Net, state_count


def check_invalid(case: Case) -> list[str]:
    """Call both sides with the same mutated arguments, and compare types of errors or shapes of results."""
    with foreign_code():  # some invalid calls make torch.nn write or read outside its memory
        theirs = _side(case, "theirs")
    ours = _side(case, "ours")
    if "wrong_weight_shape" in _described(case) and isinstance(ours, Raised) and ours.kind == "RuntimeError":
        return []  # oneDNN, which torch.nn calls, does not check the sizes of weights
    alike = theirs.kind == ours.kind if isinstance(theirs, Raised) and isinstance(ours, Raised) else theirs == ours
    return [] if alike else [f"invalid call {_described(case)}: expected {theirs}, got {ours}"]


class Raised(NamedTuple):
    """An exception: the name of its type, and the beginning of its message."""

    kind: str
    text: str


def _side(case: Case, side: str) -> Raised | list:
    torch.manual_seed(0)
    inputs = Inputs(case, case.values)
    net = Net(case, inputs, side, DTYPES[case.dtype])
    return _outcome(case, net, inputs)


def _described(case: Case) -> str:
    r = random.Random(case.invalid)
    return "+".join(mutation.__name__ for mutation in _mutations(case, r))


def _outcome(case: Case, net: Net, inputs: Inputs) -> Raised | list:
    r = random.Random(case.invalid)
    given = net.as_input(inputs.x.to(DTYPES[case.dtype]))
    states = [net._as_passed(s.to(DTYPES[case.dtype])) for s in inputs.states]
    if case.form == "cell":
        given = given[0].squeeze(0) if case.layout == "unbatched" else given[0]
    else:
        given = net.laid_out(given)
    call = {"input": given, "hx": plain.as_hx(tuple(states) or None), "net": net.net}
    for mutation in _mutations(case, r):
        try:
            mutation(case, r, call)
        except (RuntimeError, IndexError, TypeError, AttributeError):  # arguments that cannot be made
            return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            y, last = _as_pair(case, call["net"](call["input"], call["hx"]))
    except Exception as error:
        return Raised(type(error).__name__, str(error)[:250])
    y = y.data if isinstance(y, PackedSequence) else y
    return [(tuple(t.shape), str(t.dtype), str(t.device)) for t in (y, *plain.as_states(last))]


def _as_pair(case: Case, result):
    return (plain.as_states(result)[0], result) if case.form == "cell" else result


def _mutations(case: Case, r: random.Random) -> list[Callable]:
    known = [
        wrong_width,
        wrong_rank,
        more_rank,
        wrong_dtype,
        no_steps,
        meta_input,
        no_tensor,
        wrong_state_width,
        wrong_state_batch,
        wrong_state_layers,
        wrong_state_rank,
        wrong_state_dtype,
        wrong_state_count,
        meta_state,
        state_no_tensor,
        wrong_weight_dtype,
        wrong_weight_shape,
        meta_weight,
        all_meta,
    ]
    return r.sample(known, r.choice((1, 1, 1, 2)))


def _on_input(call: dict, change: Callable[[Tensor], Tensor]) -> None:
    given = call["input"]
    call["input"] = given._replace(data=change(given.data)) if isinstance(given, PackedSequence) else change(given)


def _on_state(case: Case, r: random.Random, call: dict, change: Callable[[Tensor], Tensor]) -> None:
    states = list(plain.as_states(call["hx"])) if call["hx"] is not None else []
    states = states or _fresh_states(case)  # another mutation may have removed them
    k = r.randrange(len(states))
    states[k] = change(states[k])
    call["hx"] = plain.as_hx(tuple(states))


def _fresh_states(case: Case) -> list[Tensor]:
    rows = () if case.form == "cell" else (case.layers * case.directions,)
    batch = () if case.layout == "unbatched" else (case.batch,)
    widths = [case.P or case.H, case.H][: state_count(case)]
    return [torch.zeros(*rows, *batch, w, dtype=DTYPES[case.dtype]) for w in widths]


def wrong_width(case, r, call):
    extra = r.choice((-1, 1))
    _on_input(call, lambda x: x[..., :-1] if extra < 0 else torch.cat((x, x[..., :1]), -1))


def wrong_rank(case, r, call):
    _on_input(call, lambda x: x[0])


def more_rank(case, r, call):
    _on_input(call, lambda x: x.unsqueeze(r.choice((0, -1))))


def wrong_dtype(case, r, call):
    dtype = r.choice(
        (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool, torch.complex64)
    )
    _on_input(call, lambda x: x.to(dtype))


def no_steps(case, r, call):
    if not isinstance(call["input"], PackedSequence):
        call["input"] = call["input"][:0]


def meta_input(case, r, call):
    _on_input(call, lambda x: x.to("meta"))


def no_tensor(case, r, call):
    call["input"] = r.choice((None, 3, [1.0], "x"))


def wrong_state_width(case, r, call):
    _on_state(case, r, call, lambda s: torch.cat((s, s[..., :1]), -1) if r.random() < 0.5 else s[..., :-1])


def wrong_state_batch(case, r, call):
    _on_state(case, r, call, lambda s: torch.cat((s, s[..., :1, :]), -2) if r.random() < 0.5 else s[..., :1, :])


def wrong_state_layers(case, r, call):
    _on_state(case, r, call, lambda s: torch.cat((s, s[:1])) if r.random() < 0.5 else s[:0])


def wrong_state_rank(case, r, call):
    _on_state(case, r, call, lambda s: s[0] if r.random() < 0.5 else s.unsqueeze(r.choice((0, -1, -2))))


def wrong_state_dtype(case, r, call):
    dtype = r.choice((torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64))
    _on_state(case, r, call, lambda s: s.to(dtype))


def wrong_state_count(case, r, call):
    states = plain.as_states(call["hx"]) if call["hx"] is not None else tuple(_fresh_states(case))
    call["hx"] = r.choice(((*states, states[0]), states[:1], (), list(states), states[0], None))


def meta_state(case, r, call):
    _on_state(case, r, call, lambda s: s.to("meta"))


def state_no_tensor(case, r, call):
    call["hx"] = r.choice((3, "h", (None, None), (1.0,), [[0.0]]))


def _weight(case, r, call) -> str:
    return r.choice(sorted(name for name, _ in call["net"].named_parameters()))


def _set_weight(call, name: str, value: Tensor) -> None:
    call["net"] = copy.deepcopy(call["net"])
    call["net"]._parameters[name] = torch.nn.Parameter(value, requires_grad=value.is_floating_point())
    names = getattr(call["net"], "_flat_weights_names", None)
    if names is not None:  # torch.nn computes with its list of them
        call["net"]._flat_weights = [getattr(call["net"], n) for n in names]


def wrong_weight_dtype(case, r, call):
    name = _weight(case, r, call)
    dtype = r.choice((torch.float16, torch.bfloat16, torch.float32, torch.float64))
    _set_weight(call, name, call["net"]._parameters[name].detach().to(dtype))


def wrong_weight_shape(case, r, call):
    name = _weight(case, r, call)
    w = call["net"]._parameters[name].detach()
    _set_weight(call, name, w[:-1] if r.random() < 0.5 else torch.cat((w, w[:1])))


def meta_weight(case, r, call):
    name = _weight(case, r, call)
    _set_weight(call, name, call["net"]._parameters[name].detach().to("meta"))


def all_meta(case, r, call):
    meta_input(case, r, call)
    if call["hx"] is not None:
        call["hx"] = plain.as_hx(tuple(s.to("meta") for s in plain.as_states(call["hx"])))
    call["net"] = copy.deepcopy(call["net"]).to("meta")
