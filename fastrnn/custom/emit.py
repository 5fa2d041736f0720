"""Generation of a cell's C++ header, structured like those in csrc/cells, from which kernels are compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fastrnn._ops import SavedTensor, Traits
from fastrnn.custom import emit_staged
from fastrnn.custom.differentiate import Gradients, differentiate, renamed, values_to_save
from fastrnn.custom.graph import Leaf, Node, reached
from fastrnn.custom.operations import OPERATIONS, REDUCTIONS
from fastrnn.custom.stages import of_rows
from fastrnn.custom.structure import Traced
from fastrnn.custom.writer import Writer


@dataclass(frozen=True)
class Compiled:
    """Step and gradient of a cell, ready for code generation.

    Attributes:
        gates, states, parameters: their names.
        step: the step as a graph.
        saved: the values that the forward pass saves for backward, computed from the step's arguments.
        gradients: of the step's arguments, computed from the leaves ("saved", k), ("s", k), ("new", k), ("m", k) for
            vectors multiplied besides h, ("saved_mean", k) and ("saved_sum", k), ("p", k), ("ds", k) and ("dm", 0).
        matrices: names of the matrices by number: those of the gates and inputs, then the others; ``x.i`` is the input
            matrix of gate i.
    """

    gates: tuple[str, ...]
    states: tuple[str, ...]
    parameters: tuple[str, ...]
    step: Traced
    saved: tuple[Node, ...]
    gradients: Gradients
    matrices: tuple[str, ...]

    @property
    def recurrent(self) -> tuple[int, ...]:
        """The gates with rows in the recurrent matrix, in the order of these rows."""
        return self.step.first + self.step.second

    @property
    def split_from(self) -> int:
        """Index of the first recurrent product whose gradient differs from that of the gate with the same index.

        0 for a step with stages, where this is not analysed.
        """
        if self.step.staged:
            return 0
        products = self.gradients.r + self.gradients.q
        for k, (gate, gradient) in enumerate(zip(self.recurrent, products, strict=True)):
            if k != gate or gradient is not self.gradients.x[k]:
                return k
        return len(products)

    @property
    def reads_hidden(self) -> bool:
        roots = (*self.step.new, *self.saved, *self.gradients.all())
        return self.step.staged or any(n.leaf in (("s", 0), ("new", 0)) for n in reached(roots))

    @property
    def totals(self) -> tuple[Node, ...]:
        """The values whose mean or sum over the units the step uses."""
        return totals_of(self.step)

    def traits(self) -> Traits:
        """Return the traits, equal to those of `_C.cell_traits` once the kernels are loaded."""
        gates, recurrent, second = len(self.gates), len(self.recurrent), len(self.step.second)
        one_product = recurrent == gates and not second and not self.parameters

        def tensors(vectors: int) -> tuple[SavedTensor, ...]:
            return (
                SavedTensor(gates if self.saved else 0, 0, False),
                SavedTensor(max(0, len(self.saved) - gates), 0, False),
                SavedTensor(len(self.states) - 1, len(self.totals), True),
                SavedTensor(vectors, 0, False),
            )

        return Traits(
            gates,
            len(self.states),
            len(self.saved),
            self.split_from,
            recurrent,
            second,
            len(self.parameters),
            len(self.totals),
            one_product and not self.reads_hidden,
            tensors(len(self.step.vectors)),
            tensors(1),
        )


def totals_of(step: Traced) -> tuple[Node, ...]:
    return tuple(dict.fromkeys(n.args[0] for n in reached(step.new) if n.op in REDUCTIONS))


def compiled(
    step: Traced,
    gates: Sequence[str],
    states: Sequence[str],
    parameters: Sequence[str],
    matrices: Sequence[str] | None = None,
) -> Compiled:
    """Return a step with its gradient; `matrices` are the names of all matrices, None for those of the gates."""
    gradients = differentiate(step, len(gates), len(parameters))
    saved = values_to_save(step, gradients)
    leaves: dict[int, Leaf] = {n.index: ("new", k) for k, n in enumerate(step.new) if n.args}
    leaves |= {v.index: ("m", k) for k, v in enumerate(step.vectors) if v.leaf[0] not in ("s", "p")}
    slots = {n.index: k for k, n in enumerate(totals_of(step))}
    leaves |= {n.index: (f"saved_{n.op}", slots[n.args[0].index]) for n in reached(step.new) if n.op in REDUCTIONS}
    leaves |= {n.index: ("saved", k) for k, n in enumerate(saved)}

    def known(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
        return renamed(step.graph, nodes, leaves)

    g = gradients
    gradients = Gradients(known(g.x), known(g.r), known(g.q), known(g.s), known(g.p))
    names = (tuple(gates), tuple(states), tuple(parameters))
    return Compiled(*names, step, saved, gradients, tuple(gates if matrices is None else matrices))


def header(cell: Compiled, name: str, comment: str) -> str:
    """Return the C++ header of a cell; the arguments of its functions are described in csrc/cells/README.md."""
    step = cell.step
    G, S, K, Q = len(cell.gates), len(cell.states), len(cell.saved), len(cell.parameters)
    R, R2 = len(cell.recurrent), len(step.second)
    body = emit_staged.body(cell) if step.staged else _functions(cell)
    lines = [
        *(f"// {line}".rstrip() for line in comment.splitlines()),
        "#pragma once",
        "",
        *(f'#include "{file}"' for file in _headers(cell)),
        "",
        "namespace FASTRNN_NAMESPACE {",
        "",
        f"struct {name} {{",
        f"  static constexpr int kGates = {G}, kStates = {S}, kSaved = {K};",
        f"  static constexpr int kRecurrent = {R}, kSecond = {R2}, kParameters = {Q};",
        f"  static constexpr int kSplitFrom = {cell.split_from};",
        f"  static constexpr bool kReadsHidden = {'true' if cell.reads_hidden else 'false'};",
        *body,
        "};",
        "",
        "}  // namespace FASTRNN_NAMESPACE",
        "",
    ]
    return "\n".join(lines)


def _headers(cell: Compiled) -> list[str]:
    """Return the headers that define the operations of the step and its gradient."""
    nodes = reached((*cell.step.new, *cell.step.vectors, *cell.saved, *cell.gradients.all()))
    found = {OPERATIONS[n.op].header for n in nodes if n.op in OPERATIONS} - {"simd/activations.h"}
    return ["simd/activations.h", *sorted(found), *(["cpu/staged.h"] if cell.step.staged else [])]


def _functions(cell: Compiled) -> list[str]:
    """Return the functions of a cell without stages."""
    step, gradients = cell.step, cell.gradients
    G, S, K, Q = len(cell.gates), len(cell.states), len(cell.saved), len(cell.parameters)
    R, R2 = len(cell.recurrent), len(step.second)
    place = {gate: k for products in (step.first, step.second) for k, gate in enumerate(products)}
    drh = gradients.r + gradients.q
    more = Q > 0 or R2 > 0  # arguments that built-in cells do not have

    def arguments(text: str, extended: str = "") -> list[tuple[str, str, int]]:
        sizes = {"wx": G, "rh": R - R2, "rm": R2, "s": S, "p": Q, "m": 1, "s_new": S, "saved": K, "ds_new": S}
        sizes |= {"dm": 1, "da": G, "drh": R, "ds": S, "dp": Q, "drm": R2}
        names = [n for n in text.split() if more or n.lstrip("=") not in extended.split()]
        return [("V" if n[0] == "=" else "const V", n.lstrip("="), max(1, sizes[n.lstrip("=")])) for n in names]

    ahead = _reader({"x": "wx", "r": "rh", "q": "rm", "s": "s", "p": "p"}, place)
    back = _reader({"saved": "saved", "s": "s", "new": "s_new", "m": "m", "p": "p", "ds": "ds_new", "dm": "dm"}, {})
    body = _function(
        "forward",
        arguments("wx rh rm s p =s_new =saved", "rm p"),
        ahead,
        [("s_new", 0, step.new), ("saved", 0, cell.saved)],
    )
    if step.vector is not None:
        body += _function("inner", arguments("wx rh s p =m"), ahead, [("m", 0, (step.vector,))])
        body += _function("inner_gradient", arguments("saved s s_new m p ds_new =drm"), back, [("drm", 0, gradients.q)])
    split = cell.split_from
    body += _function(
        "backward",
        arguments("saved s s_new m p ds_new dm =da =drh =ds =dp", "m p dm dp"),
        back,
        [("da", 0, gradients.x), ("drh", split, drh[split:]), ("ds", 0, gradients.s), ("dp", 0, gradients.p)],
    )
    return body


def _function(
    name: str,
    arguments: Sequence[tuple[str, str, int]],
    leaf: Callable[[Leaf], str],
    results: Sequence[tuple[str, int, Sequence[Node]]],
) -> list[str]:
    """Return a function that sets arrays, each from a start index."""
    writer = Writer([n for _, _, nodes in results for n in nodes], leaf)
    sets = [f"    {array}[{k}] = {writer.name(n)};" for array, at, nodes in results for k, n in enumerate(nodes, at)]
    return [
        "",
        "  template <class M, class V>",
        f"  FASTRNN_FN static void {name}({_list(arguments)}) {{",
        "    using C [[maybe_unused]] = typename V::Lane;",
        *writer.lines(),
        *sets,
        "  }",
    ]


def _list(arguments: Sequence[tuple[str, str, int]]) -> str:
    return ", ".join(f"[[maybe_unused]] {kind} (&{name})[{size}]" for kind, name, size in arguments)


def _reader(arrays: Mapping[str, str], place: Mapping[int, int]) -> Callable[[Leaf], str]:
    """Return a function that writes the read access to a leaf; products are stored at the given places."""

    def read(leaf: Leaf) -> str:
        kind, k = leaf
        return f"{arrays[kind]}[{place[k] if kind in ('r', 'q') else k}]"

    return read


def equations(cell: Compiled) -> str:
    """Return the step, its gradient and the saved values as text, one line each."""
    names = {
        "x": [f"x.{n}" for n in cell.gates],
        "r": [f"r.{n}" for n in cell.matrices],
        "q": [f"r.{n}(m)" for n in cell.matrices],
        "m": ["m"] if len(cell.step.vectors) == 1 else [f"m{k}" for k in range(len(cell.step.vectors))],
        "dm": ["dm"],
        "s": [f"s.{n}" for n in cell.states],
        "new": [f"{n}'" for n in cell.states],
        "p": [f"p.{n}" for n in cell.parameters],
        "ds": [f"d{n}'" for n in cell.states],
        "saved": [f"k{k}" for k in range(len(cell.saved))],
        "saved_mean": [f"mean{k}" for k in range(len(cell.totals))],
        "saved_sum": [f"sum{k}" for k in range(len(cell.totals))],
    }

    def matrix(number: int) -> str:
        name = cell.matrices[number]
        return f"W_{name[2:]}" if name.startswith("x.") else f"R_{name}"

    def block(roots: Sequence[tuple[str, Node]]) -> list[str]:
        uses: dict[int, int] = {}
        nodes = reached([n for _, n in roots])
        for node in nodes:
            for a in node.args:
                uses[a.index] = uses.get(a.index, 0) + 1
        shown: dict[int, str] = {}
        lines: list[str] = []

        def text(node: Node, whole: bool = False) -> str:
            if node.index in shown and not whole:
                return shown[node.index]
            if node.is_constant:
                return f"{node.value:g}"
            if node.op == "leaf":
                return names[node.leaf[0]][node.leaf[1]]
            if node.op == "product":
                return f"{matrix(node.leaf[1])}·({text(node.args[0])})"
            if node.op == "transposed":
                group = cell.step.groups[node.leaf[1]].matrices
                parts = zip(group, node.args, strict=True)
                return "(" + " + ".join(f"{matrix(k)}ᵀ·({text(a)})" for k, a in parts) + ")"
            row = OPERATIONS[node.op]
            pattern = row.text or f"{node.op}({', '.join(f'{{{k}}}' for k in range(row.arguments))})"
            out = pattern.format(*map(text, node.args))
            return out if whole or node.op not in ("add", "sub") else f"({out})"

        depth: dict[int, int] = {}
        for node in nodes:
            depth[node.index] = 1 + max((depth[a.index] for a in node.args), default=0)
            named = uses.get(node.index, 0) > 1 or depth[node.index] > 30  # longer lines are unreadable
            if node.args and named and node.index not in shown:
                depth[node.index] = 0
                label = f"t{node.index}"
                lines.append(f"  {label} = {text(node, True)}")
                shown[node.index] = label
        return lines + [
            f"  {label} = {text(node) if node.index in shown else text(node, True)}" for label, node in roots
        ]

    step, g = cell.step, cell.gradients
    vector = list(zip(names["m"], step.vectors, strict=True))
    results = (*vector, *zip(names["new"], step.new, strict=True), *zip(names["saved"], cell.saved, strict=True))
    out = ["step:", *block(results), "gradient:"]
    pairs = [(f"dx.{name}", node) for name, node in zip(cell.gates, g.x, strict=True)]
    split = cell.split_from
    for gate, node in list(zip(cell.recurrent, g.r + g.q, strict=True))[split:]:
        pairs.append((f"dr.{cell.matrices[gate]}", node))
    pairs += [
        (f"d{name}", n) for kind, nodes in (("s", g.s), ("p", g.p)) for name, n in zip(names[kind], nodes, strict=True)
    ]
    out += block(pairs)
    if split:
        out.append(f"  dr = dx for {', '.join(cell.gates[:split])}")
    ahead, back = (_operations(nodes) for nodes in ((*step.new, *cell.saved), g.all()))
    states = "state" if len(cell.states) == 1 else f"{len(cell.states)} states"
    saved = f", and {', '.join(names['m'])}, which R is multiplied with" if vector else ""
    sums = f", {len(cell.totals)} sums a step" if cell.totals else ""
    out.append(f"saved for backward: {len(cell.saved)} values per unit and step (k…){sums}{saved}, and the {states}")
    out.append(f"element-wise operations per unit and step, in multiply-adds: {ahead:.0f} forward, {back:.0f} backward")
    return "\n".join(out)


def _operations(roots: Sequence[Node]) -> float:
    nodes = reached(roots)
    once = of_rows(nodes)  # computed once for a row instead of once for each unit
    return sum(OPERATIONS[n.op].cost for n in nodes if n.op in OPERATIONS and n.index not in once)
