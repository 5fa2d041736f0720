"""A case's modules, torch.nn's and ours, with equal parameters, and its inputs."""

from __future__ import annotations

import random
import warnings
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn
from fastrnn.functional import LayerWeights, sequence

from . import plain
from .case import Case

DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}
OURS = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "RNN", "rnn_relu": "RNN"}


def state_count(case: Case) -> int:
    return len(_gallery(case).states) if case.custom else 2 if case.kind == "lstm" else 1


def state_names(case: Case) -> tuple[str, ...]:
    return tuple(_gallery(case).states) if case.custom else ("h", "c")[: state_count(case)]


def _gallery(case: Case):
    from fastrnn import gallery  # its cells are traced when it is imported

    return gallery.CELLS[case.kind]


@dataclass
class Inputs:
    """The tensors of a call in float64, rounded to its dtype."""

    case: Case
    draw: int
    x: Tensor = field(init=False)  # the leaf that the input is a view of
    states: tuple[Tensor, ...] = field(init=False)
    initial: tuple[Tensor, ...] | None = field(init=False)
    ids: Tensor | None = field(init=False)
    lengths: Tensor | None = field(init=False)
    reset: Tensor | None = field(init=False)
    rows: Tensor | None = field(init=False)  # lengths of a packed input

    def __post_init__(self) -> None:
        c, self.g = self.case, torch.Generator().manual_seed(self.draw)
        T, B = c.T, c.batch
        self.ids = torch.randint(0, c.vocabulary, (T, B), generator=self.g) if c.vocabulary else None
        shape = {"strided": (T, B, 2 * c.I), "transposed": (B, T, c.I), "offset": (T * B * c.I + 3,)}
        self.x = self.normal(*shape.get(c.x, (T, 1, c.I) if c.x == "expanded" else (T, B, c.I)))
        self.states = self._states() if c.hx else ()
        self.initial = self._states(plain=True) if c.initial else None
        self.lengths = torch.randint(0, T + 1, (B,), generator=self.g) if c.lengths else None
        self.reset = (torch.rand(T, B, generator=self.g) < 0.3) if c.reset else None
        self.rows = None
        if c.packed:
            self.rows = torch.randint(1, T + 1, (B,), generator=self.g)
            self.rows[int(torch.randint(0, B, (), generator=self.g))] = T
            if c.layout == "packed":
                self.rows = self.rows.sort(descending=True)[0]
        self._plant()

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(*shape, generator=self.g, dtype=torch.float64) * scale
        return self.rounded(values)

    def rounded(self, values: Tensor) -> Tensor:
        values = values.to(DTYPES[self.case.dtype])
        return (values.to(DTYPES[self.case.autocast]) if self.case.autocast else values).double()

    def _states(self, plain: bool = False) -> tuple[Tensor, ...]:
        c = self.case
        rows, lead = c.layers * c.directions, () if c.form == "cell" else (c.layers * c.directions,)
        del rows
        found = []
        for k, name in enumerate(state_names(c)):
            width = c.P if c.P and k == 0 else c.H
            batch = 1 if c.hx == "expanded" and not plain else c.batch
            wide = 2 * width if c.hx == "strided" and not plain else width
            s = self.normal(*lead, batch, wide, scale=0.5)
            found.append(s.abs() + 0.5 if name == "n" else s)
        return tuple(self.rounded(s) for s in found)

    def _plant(self) -> None:
        what, _, where = self.case.special.partition(" ")
        target = {"x": self.x, "state": self.states[0] if self.states else None}.get(where)
        if target is not None and target.numel():
            k = int(torch.randint(0, target.numel(), (), generator=self.g))
            target.view(-1)[k] = float(what)

    def seeds(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Draw ∂L/∂output for the outputs that are in the loss."""
        r, found = random.Random(self.case.outputs), {}
        chosen = [name for name in outputs if self.case.outputs == 0 or r.random() < 0.5] or list(outputs)[:1]
        for k, name in enumerate(outputs):
            g = torch.Generator().manual_seed(self.draw * 31 + k)
            seed = self.rounded(torch.randn(outputs[name].shape, generator=g, dtype=torch.float64))
            if self.case.special == "nan seed" and seed.numel() and name == chosen[0]:
                seed.view(-1)[int(torch.randint(0, seed.numel(), (), generator=g))] = float("nan")
            if name in chosen:
                found[name] = seed.to(outputs[name].dtype)
        return found


class Net(nn.Module):
    """A whole call as a module: `forward(x, *states)` of leaves returns the outputs by name.

    side: "ours" or "theirs", for a custom cell its plain PyTorch reference.
    """

    def __init__(self, case: Case, inputs: Inputs, side: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.case, self.inputs, self.side = case, inputs, side
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.net = self._module().to(dtype)
        self.table = nn.Embedding(case.vocabulary, case.I).to(dtype) if case.vocabulary else None
        self.train(not case.evaluation)
        self.fill(dtype)

    def _module(self) -> nn.Module:
        c = self.case
        options: dict = {"bias": c.bias}
        if c.kind == "rnn_relu":
            options["nonlinearity"] = "relu"
        ours = self.side == "ours"
        if c.form == "cell":
            owner = fastrnn if ours else nn
            cls = getattr(owner, plain.TORCH_CELLS[c.kind].__name__)
        else:
            options.update(
                num_layers=c.layers, batch_first=c.batch_first, dropout=c.dropout, bidirectional=c.bidirectional
            )
            cls = _gallery(c) if c.custom else getattr(fastrnn if ours else nn, OURS[c.kind])
            if c.P:
                options["proj_size"] = c.P
        if c.learned and (ours or c.custom):
            options["learn_initial_state"] = True
        module = cls(c.I, c.H, **options)
        if c.learned and not ours and not c.custom:
            for name, width in self.learned_names():
                module.register_parameter(name, nn.Parameter(torch.zeros(width)))
        if ours and not c.custom and c.form != "functional" and c.backend != "auto":
            module.backend = c.backend
        return module

    def learned_names(self) -> list[tuple[str, int]]:
        c = self.case
        if c.form == "cell":
            suffixes = [""]
        else:
            suffixes = [f"_l{k}" + "_reverse" * d for k in range(c.layers) for d in range(c.directions)]
        widths = [c.P if c.P and k == 0 else c.H for k in range(state_count(c))]
        return [(f"initial_{n}{s}", w) for s in suffixes for n, w in zip(state_names(c), widths, strict=True)]

    def fill(self, dtype: torch.dtype) -> None:
        """Set the parameters from the draw, by name: the same for both sides in every dtype."""
        c = self.case
        with torch.no_grad():
            for name, p in sorted(self.named_parameters()):
                g = torch.Generator().manual_seed(self.inputs.draw * 17 + sum(map(ord, name)))
                values = 2 * torch.rand(p.shape, generator=g, dtype=torch.float64) - 1
                values = values if name.startswith("table") else values / c.H**0.5
                if "alpha" in name or "initial_n" in name:
                    values = values.abs() + 0.1
                if c.special.endswith("weight") and name.startswith("net.weight_hh_l0") and values.numel():
                    values.view(-1)[self.inputs.draw % values.numel()] = float(c.special.split()[0])
                p.copy_(self.inputs.rounded(values))

    def forward(self, x: Tensor, *states: Tensor) -> dict[str, Tensor]:
        hx = tuple(self._as_passed(s) for s in states) or None
        if self.case.form == "cell":
            return self._cell(x, hx)
        if self.side == "ours" or self.case.custom:
            y, last = self._ours(x, hx)
        else:
            y, last = self._theirs(x, hx)
        y = y.data if isinstance(y, PackedSequence) else y
        return {"y": y, **dict(zip((f"{n}_n" for n in state_names(self.case)), last, strict=True))}

    def _as_passed(self, s: Tensor) -> Tensor:
        c = self.case
        if c.hx == "strided":
            s = s[..., ::2]
        elif c.hx == "expanded":
            s = s.expand(*s.shape[:-2], c.batch, -1)
        return s.squeeze(-2) if c.layout == "unbatched" else s

    def as_input(self, x: Tensor) -> Tensor:
        """Return the input (T, B, I) as a view of its leaf."""
        c = self.case
        if c.x == "strided":
            return x[..., ::2]
        if c.x == "transposed":
            return x.transpose(0, 1)
        if c.x == "offset":
            return x[3:].view(c.T, c.batch, c.I)
        return x.expand(-1, c.batch, -1) if c.x == "expanded" else x

    def laid_out(self, x: Tensor) -> Tensor | PackedSequence:
        """Arrange (T, B, …) as the module takes it."""
        c = self.case
        if c.packed:
            ids = x.dim() == 2
            x = x.unsqueeze(-1) if ids else x
            x = x.transpose(0, 1) if c.batch_first else x
            packed = pack_padded_sequence(x, self.inputs.rows, c.batch_first, enforce_sorted=c.layout == "packed")
            return packed._replace(data=packed.data.squeeze(-1)) if ids else packed
        if c.layout == "unbatched":
            return x.squeeze(1)
        return x.transpose(0, 1) if c.batch_first else x

    def keywords(self) -> dict:
        c, found = self.case, {}
        if c.lengths:
            found["lengths"] = self.inputs.lengths
        if c.reset:
            found["reset"] = self.laid_out_flags()
        if self.inputs.initial is not None:
            like = next(self.net.parameters()).dtype
            initial = tuple(s.to(like) for s in self.inputs.initial)
            found["initial"] = plain.as_hx(tuple(s.squeeze(-2) if c.layout == "unbatched" else s for s in initial))
        if c.clip:
            found["clip_state_gradient"] = c.clip
        if c.recompute:
            found["recompute"] = True if c.recompute == -1 else c.recompute
        return found

    def laid_out_flags(self) -> Tensor:
        c, reset = self.case, self.inputs.reset
        return reset.squeeze(1) if c.layout == "unbatched" else reset.t() if c.batch_first else reset

    def _ours(self, x: Tensor, hx) -> tuple:
        c, keywords = self.case, self.keywords()
        if c.form == "functional":
            return self._functional(x, hx, keywords)
        if c.custom:
            keywords["backend"] = "reference" if self.side == "theirs" else c.backend
        if c.vocabulary:
            keywords["embedding"] = self.table.weight if self.inputs.draw % 2 else self.table
        given = self.laid_out(self.as_input(x)) if self.inputs.ids is None else self.laid_out(self.inputs.ids)
        y, last = self.net(given, plain.as_hx(hx), **keywords)
        return y, plain.as_states(last)

    def _functional(self, x: Tensor, hx, keywords: dict) -> tuple:
        c, net = self.case, self.net
        weights = [getattr(net, f"{name}_l0", None) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        w = LayerWeights(*weights, getattr(net, "weight_hr_l0", None))
        states = None if hx is None else [s[0] for s in hx]
        if "initial" in keywords:
            keywords["initial"] = [s[0] for s in plain.as_states(keywords["initial"])]
        given = self.as_input(x) if self.inputs.ids is None else self.inputs.ids
        if c.packed:
            packed = self.laid_out(given)
            keywords["batch_sizes"] = packed.batch_sizes
            given = packed.data
        if c.vocabulary:
            keywords["embedding"] = self.table.weight
        backend = {"backend": c.backend}
        y, last = sequence(c.kind, given, w, states, **keywords, **backend)
        return y, tuple(s.unsqueeze(0) for s in last)

    def _theirs(self, x: Tensor, hx) -> tuple:
        c, i = self.case, self.inputs
        x = self.as_input(x) if i.ids is None else F.embedding(i.ids, self.table.weight)
        learned = self._learned()
        given = hx if hx is not None else self.keywords().get("initial")
        given = plain.as_states(given) if given is not None else learned
        if not (c.lengths or c.reset or c.clip):
            y, last = self.net(self.laid_out(x), plain.as_hx(given))
            return y, plain.as_states(last)
        return self._by_rows(x, given, learned)

    def _by_rows(self, x: Tensor, given, learned) -> tuple:
        c, i = self.case, self.inputs
        unbatched = c.layout == "unbatched"
        wide = (lambda states: states and tuple(s.unsqueeze(1) for s in states)) if unbatched else (lambda s: s)
        given, learned = wide(given), wide(learned)
        zeros = tuple(x.new_zeros(c.layers * c.directions, c.batch, w) for w in [c.P or c.H, c.H][: state_count(c)])
        first = given or zeros
        initial = self.keywords().get("initial")
        later = wide(plain.as_states(initial)) if initial is not None else learned or first
        dropout = c.dropout if self.training else 0.0
        lengths = i.rows if c.packed else i.lengths
        rows = None if i.reset is None else i.reset
        y, last = plain.layers(c, self.net, x, first, later, lengths, rows, dropout)
        if unbatched:
            return y.squeeze(1), tuple(s.squeeze(1) for s in last)
        if c.packed:
            packed = pack_padded_sequence(y, i.rows, enforce_sorted=c.layout == "packed")
            return packed, last
        return y.transpose(0, 1) if c.batch_first else y, last

    def _learned(self):
        c = self.case
        if not c.learned:
            return None
        names = state_names(c)
        if c.form == "cell":
            found = [getattr(self.net, f"initial_{n}") for n in names]
            return tuple(s if c.layout == "unbatched" else s.expand(c.batch, -1) for s in found)
        found = []
        for n in names:
            rows = torch.stack(
                [getattr(self.net, key) for key, _ in self.learned_names() if key.startswith(f"initial_{n}")]
            )
            found.append(rows if c.layout == "unbatched" else rows.unsqueeze(1).expand(-1, c.batch, -1).contiguous())
        return tuple(found)

    def _cell(self, x: Tensor, hx) -> dict[str, Tensor]:
        c = self.case
        x = self.as_input(x)[0]
        x = x.squeeze(0) if c.layout == "unbatched" else x
        if hx is None and self.side == "theirs":
            hx = self._learned()
        last = plain.as_states(self.net(x, plain.as_hx(hx)))
        return dict(zip((f"{n}_n" for n in state_names(c)), last, strict=True))
