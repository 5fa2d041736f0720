"""The gallery's cells written again from their papers: plain loops over time, gate by gate, without the library."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

States = tuple[Tensor, ...]


class Weights:
    """One layer's matrices by gate: W[k] (H, I), R[k] (H, H), b[k] and q[k] (H); the cell's vectors in `p`."""

    def __init__(self, network: torch.nn.Module, order: str) -> None:
        named = {name.removesuffix("_l0"): value for name, value in network.named_parameters()}
        ahead, others, back = order.partition("|")  # blocks of W, and those of R where they differ
        gates = {"W": ahead.split(), "R": (back if others else ahead).split()}
        gates |= {"b": gates["W"], "q": gates["R"]}
        blocks = {
            name: dict(zip(gates[name], named.pop(full).chunk(max(1, len(gates[name]))), strict=False))
            for name, full in (("W", "weight_ih"), ("R", "weight_hh"), ("b", "bias_ih"), ("q", "bias_hh"))
        }
        self.W, self.R, self.b, self.q = (blocks[name] for name in "WRbq")
        self.p = named

    def of_input(self, k: str, x: Tensor) -> Tensor:
        return x @ self.W[k].T + self.b[k]

    def of_state(self, k: str, h: Tensor) -> Tensor:
        return h @ self.R[k].T + self.q[k]

    def net(self, k: str, x: Tensor, h: Tensor) -> Tensor:
        return self.of_input(k, x) + self.of_state(k, h)


Step = Callable[[Weights, Tensor, States], States]
#: By cell: the gates in the order of their blocks, and one step.
REFERENCES: dict[str, tuple[str, Step]] = {}


def reference(name: str, order: str) -> Callable[[Step], Step]:
    def add(step: Step) -> Step:
        REFERENCES[name] = (order, step)
        return step

    return add


def logistic(a: Tensor) -> Tensor:
    """Compute the logistic function for any argument: exp(-a) would overflow, and its gradient would be NaN."""
    return torch.sigmoid(a)


def run(name: str, network: torch.nn.Module, x: Tensor, states: States) -> tuple[Tensor, States]:
    """Run a cell on x (T, B, I) and states (B, H) each; return outputs (T, B, H) and the last states."""
    order, step = REFERENCES[name]
    weights, outputs = Weights(network, order), []
    for t in range(len(x)):
        states = step(weights, x[t], states)
        outputs.append(states[0])
    return torch.stack(outputs), states


@reference("elman_sigmoid", "h")
def _elman_sigmoid(w: Weights, x: Tensor, states: States) -> States:
    return (logistic(w.net("h", x, states[0])),)


@reference("elman_identity", "h")
def _elman_identity(w: Weights, x: Tensor, states: States) -> States:
    return (w.net("h", x, states[0]),)


@reference("one_state", "f u")
def _one_state(w: Weights, x: Tensor, states: States) -> States:
    (h,) = states
    return (logistic(w.net("f", x, h)) * h + w.net("u", x, h).tanh(),)


@reference("nas", "0 1 2 3 4 5 6 7")
def _nas(w: Weights, x: Tensor, states: States) -> States:
    h, c = states
    # Leaves of the tree, as functions of the sum or (at 3) of the product of both sides.
    inner = {k: w.net(k, x, h) for k in "0124567"}
    product = w.of_input("3", x) * w.of_state("3", h)
    left = (logistic(inner["0"]) * inner["1"].relu()).tanh() + c
    right = logistic(inner["2"]) + product.relu()
    new_c = left.tanh() * right.tanh()
    third = (inner["4"].tanh() * logistic(inner["5"])).tanh()
    fourth = logistic(inner["6"].tanh() + logistic(inner["7"]))
    return (new_c * (third + fourth).tanh()).tanh(), new_c


def _lstm(without: str = "", peepholes: bool = True, coupled: bool = False) -> Step:
    """Greff et al. 2015: the vanilla LSTM, without the named gates (i, f, o) or activations (g, h)."""

    def step(w: Weights, x: Tensor, states: States) -> States:
        y, c = states

        def gate(k: str, cell: Tensor) -> Tensor:
            if k in without:
                return torch.ones_like(cell)
            peephole = w.p["p" + k] * cell if peepholes else 0.0
            return logistic(w.net(k, x, y) + peephole)

        z = w.net("z", x, y)
        if "g" not in without:
            z = z.tanh()
        i = gate("i", c)
        f = 1 - i if coupled else gate("f", c)
        new_c = z * i + c * f
        return (new_c if "h" in without else new_c.tanh()) * gate("o", new_c), new_c

    return step


reference("peephole_lstm", "z i f o")(_lstm())
reference("lstm_no_input_gate", "z f o")(_lstm(without="i"))
reference("lstm_no_forget_gate", "z i o")(_lstm(without="f"))
reference("lstm_no_output_gate", "z i f")(_lstm(without="o"))
reference("lstm_no_input_activation", "z i f o")(_lstm(without="g"))
reference("lstm_no_output_activation", "z i f o")(_lstm(without="h"))
reference("lstm_coupled_gates", "z i o")(_lstm(coupled=True))
reference("lstm_no_peepholes", "z i f o")(_lstm(peepholes=False))


def _slstm(forget: Callable[[Tensor], Tensor]) -> Step:
    """Beck et al. 2024, with log f = forget(f~); with logarithms of the gates, because exp(i~) would overflow."""

    def step(w: Weights, x: Tensor, states: States) -> States:
        h, c, n, m = states
        log_i, log_f = w.net("i", x, h), forget(w.net("f", x, h))
        new_m = torch.maximum(log_f + m, log_i)
        stable_i, stable_f = torch.exp(log_i - new_m), torch.exp(log_f + m - new_m)
        new_c = stable_f * c + stable_i * torch.tanh(w.net("z", x, h))
        new_n = stable_f * n + stable_i
        return logistic(w.net("o", x, h)) * (new_c / new_n), new_c, new_n, new_m

    return step


reference("slstm", "i f z o")(_slstm(lambda f: f))
reference("slstm_sigmoid", "i f z o")(_slstm(torch.nn.functional.logsigmoid))


def _rate(activation: Callable[[Tensor], Tensor]) -> Step:
    def step(w: Weights, x: Tensor, states: States) -> States:
        rate, current = states
        alpha = w.p["alpha"]
        new = (1 - alpha) * current + alpha * w.net("v", x, rate)
        return activation(new), new

    return step


reference("rate_tanh", "v")(_rate(torch.tanh))
reference("rate_relu", "v")(_rate(torch.relu))
reference("rate_noisy", "v")(_rate(torch.relu))  # in evaluation, where the noise is zero


def _reset_before(w: Weights, x: Tensor, states: States) -> States:
    (h,) = states
    r, z = logistic(w.net("r", x, h)), logistic(w.net("z", x, h))
    n = torch.tanh(w.of_input("n", x) + w.of_state("n", r * h))
    return (z * h + (1 - z) * n,)


def _mut1(w: Weights, x: Tensor, states: States) -> States:
    (h,) = states
    z, r = logistic(w.of_input("z", x)), logistic(w.net("r", x, h))
    return (torch.tanh(w.of_state("h", r * h) + torch.tanh(w.of_input("h", x))) * z + h * (1 - z),)


def _mut2(w: Weights, x: Tensor, states: States) -> States:
    (h,) = states
    z, r = logistic(w.net("z", x, h)), logistic(w.net("r", x, h))
    return (torch.tanh(w.of_state("h", r * h) + w.of_input("h", x)) * z + h * (1 - z),)


def _multiplied(w: Weights, x: Tensor, h: Tensor) -> Tensor:
    return w.of_input("m", x) * w.of_state("m", h)


def _multiplicative_rnn(w: Weights, x: Tensor, states: States) -> States:
    return (torch.tanh(w.net("h", x, _multiplied(w, x, states[0]))),)


def _multiplicative_lstm(w: Weights, x: Tensor, states: States) -> States:
    m = _multiplied(w, x, states[0])
    i, f, o = (logistic(w.net(k, x, m)) for k in "ifo")
    c = f * states[1] + i * torch.tanh(w.net("g", x, m))
    return o * torch.tanh(c), c


reference("gru_reset_before", "r z n")(_reset_before)
reference("mut1", "z r h|r h")(_mut1)
reference("mut2", "z r h|z r h")(_mut2)
reference("multiplicative_rnn", "m h")(_multiplicative_rnn)
reference("multiplicative_lstm", "m i f o g")(_multiplicative_lstm)


def _indrnn(w: Weights, x: Tensor, states: States) -> States:
    return (torch.relu(w.of_input("h", x) + w.p["u"] * states[0]),)


def _sru(w: Weights, x: Tensor, states: States) -> States:
    c = states[1]
    f = logistic(w.of_input("f", x) + w.p["v_f"] * c)
    r = logistic(w.of_input("r", x) + w.p["v_r"] * c)
    new = f * c + (1 - f) * w.of_input("u", x)
    return r * new + (1 - r) * w.of_input("skip", x), new


def _min_gru(w: Weights, x: Tensor, states: States) -> States:
    z = logistic(w.of_input("z", x))
    return ((1 - z) * states[0] + z * w.of_input("h", x),)


def _min_lstm(w: Weights, x: Tensor, states: States) -> States:
    """Min LSTM with logarithms of f/(f+i) and i/(f+i), because both gates may underflow."""
    log_f, log_i = (torch.nn.functional.logsigmoid(w.of_input(k, x)) for k in "fi")
    log_sum = torch.logaddexp(log_f, log_i)
    return (torch.exp(log_f - log_sum) * states[0] + torch.exp(log_i - log_sum) * w.of_input("h", x),)


reference("indrnn", "h|")(_indrnn)
reference("sru", "u f r skip|")(_sru)
reference("min_gru", "z h|")(_min_gru)
reference("min_lstm", "f i h|")(_min_lstm)


def _lstm_parts(w: Weights, x: Tensor, states: States) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    h = states[0]
    return (
        logistic(w.net("i", x, h)),
        logistic(w.net("f", x, h)),
        torch.tanh(w.net("g", x, h)),
        logistic(w.net("o", x, h)),
    )


def _zoneout(w: Weights, x: Tensor, states: States) -> States:
    """Zoneout with the means of the masks, as outside training."""
    h, c = states
    i, f, g, o = _lstm_parts(w, x, states)
    new = f * c + i * g
    return 0.95 * (o * torch.tanh(new)) + 0.05 * h, 0.5 * new + 0.5 * c


def _recurrent_dropout(w: Weights, x: Tensor, states: States) -> States:
    i, f, g, o = _lstm_parts(w, x, states)
    c = f * states[1] + i * g
    return o * torch.tanh(c), c


reference("zoneout_lstm", "i f g o")(_zoneout)
reference("recurrent_dropout_lstm", "i f g o")(_recurrent_dropout)


@reference("mut3", "z r h|r z h")
def _mut3(w: Weights, x: Tensor, states: States) -> States:
    (h,) = states
    z = logistic(w.net("z", x, h.tanh()))
    candidate = w.net("h", x, logistic(w.net("r", x, h)) * h).tanh()
    return (candidate * z + h * (1 - z),)


@reference("lstm_full_gate_recurrence", "z i f o|z i f o ii if io fi ff fo oi of oo")
def _full_gate_recurrence(w: Weights, x: Tensor, states: States) -> States:
    h, c, *gates = states

    def net(k: str, cell: Tensor) -> Tensor:
        seen = sum(w.of_state(source + k, gate) for source, gate in zip("ifo", gates, strict=True))
        return w.net(k, x, h) + w.p[f"p{k}"] * cell + seen

    i, f = logistic(net("i", c)), logistic(net("f", c))
    new_c = f * c + i * w.net("z", x, h).tanh()
    o = logistic(net("o", new_c))
    return o * new_c.tanh(), new_c, i, f, o


def _norm(v: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    return torch.nn.functional.layer_norm(v, v.shape[-1:], gain, shift, 1e-5)


def _joint(w: Weights, kind: str, gates: str, v: dict[str, Tensor]) -> list[Tensor]:
    """Apply layer normalisation over several gates at once."""
    gain = torch.cat([w.p[f"{kind}g_{k}"] for k in gates])
    return list(_norm(torch.cat([v[k] for k in gates], -1), gain, torch.zeros_like(gain)).chunk(len(gates), -1))


@reference("layer_norm_lstm", "f i o g")
def _layer_norm_lstm(w: Weights, x: Tensor, states: States) -> States:
    h, c = states
    ahead = _joint(w, "x", "fiog", {k: w.of_input(k, x) for k in "fiog"})
    back = _joint(w, "r", "fiog", {k: w.of_state(k, h) for k in "fiog"})
    f, i, o, g = (a + b + w.p[f"b_{k}"] for k, a, b in zip("fiog", ahead, back, strict=True))
    new_c = logistic(f) * c + logistic(i) * g.tanh()
    return logistic(o) * _norm(new_c, w.p["g_c"], w.p["b_c"]).tanh(), new_c


@reference("layer_norm_gru", "z r h")
def _layer_norm_gru(w: Weights, x: Tensor, states: States) -> States:
    (h,) = states
    ahead = _joint(w, "x", "zr", {k: w.of_input(k, x) for k in "zr"})
    back = _joint(w, "r", "zr", {k: w.of_state(k, h) for k in "zr"})
    z, r = (logistic(a + b + w.p[f"b_{k}"]) for k, a, b in zip("zr", ahead, back, strict=True))
    candidate = _norm(w.of_input("h", x), w.p["xg_h"], w.p["b_h"])
    candidate = (candidate + r * _norm(w.of_state("h", h), w.p["rg_h"], w.p["rb_h"])).tanh()
    return ((1 - z) * h + z * candidate,)
