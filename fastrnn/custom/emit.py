"""Writes a cell as the C++ header that the kernels are compiled from, of the same shape as those in csrc/cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fastrnn.custom.differentiate import differentiate, renamed, to_keep
from fastrnn.custom.graph import Graph, Leaf, Node, reached
from fastrnn.custom.operations import OPERATIONS


@dataclass(frozen=True)
class Compiled:
    """A cell's step and gradient, ready to be written down.

    Attributes:
        gates, states, parameters: their names.
        new: the new states.
        kept: what the forward pass keeps for the backward pass, computed from the step's arguments.
        backward: gradients of x, r, s and p, in this order, computed from the leaves ("kept", k), ("s", k),
            ("new", k), ("p", k) and ("ds", k).
    """

    gates: tuple[str, ...]
    states: tuple[str, ...]
    parameters: tuple[str, ...]
    new: tuple[Node, ...]
    kept: tuple[Node, ...]
    backward: tuple[Node, ...]

    @property
    def split_from(self) -> int:
        """The first gate from which on ∂L/∂x and ∂L/∂r are computed separately."""
        G = len(self.gates)
        same = [a is b for a, b in zip(self.backward[:G], self.backward[G : 2 * G], strict=True)]
        return same.index(False) if False in same else G

    @property
    def reads_hidden(self) -> bool:
        return any(n.leaf in (("s", 0), ("new", 0)) for n in reached((*self.new, *self.kept, *self.backward)))

    def sizes(self) -> tuple[int, int, int, bool, int]:
        """As `_C.cell_sizes` gives them."""
        split = self.split_from < len(self.gates)
        return len(self.gates), len(self.states), len(self.kept), split, len(self.parameters)


def compile_graph(
    graph: Graph,
    new: tuple[Node, ...],
    gates: Sequence[str],
    states: Sequence[str],
    parameters: Sequence[str],
) -> Compiled:
    gradients = differentiate(graph, new, len(gates), len(parameters))
    kept = to_keep(new, gradients)
    leaves: dict[int, Leaf] = {n.index: ("new", k) for k, n in enumerate(new) if n.args}
    leaves |= {n.index: ("kept", k) for k, n in enumerate(kept)}
    backward = renamed(graph, gradients.all(), leaves)
    return Compiled(tuple(gates), tuple(states), tuple(parameters), new, kept, backward)


def number(value: float, cast: str = "C") -> str:
    if value != value:
        return f'V({cast}(__builtin_nan("")))'
    if value in (float("inf"), -float("inf")):
        return f"V({cast}({'-' if value < 0 else ''}__builtin_inf()))"
    return f"V({cast}({value!r}))"


class _Writer:
    """Statements for some roots, each node computed once, a product and a sum as one operation where that is exact
    enough to be better: a·b + c rounded once.
    """

    def __init__(self, roots: Sequence[Node], leaf: Callable[[Leaf], str]) -> None:
        self.leaf = leaf
        self.nodes = reached(roots)
        self.uses: dict[int, int] = {}
        for node in self.nodes:
            for a in node.args:
                self.uses[a.index] = self.uses.get(a.index, 0) + 1
        for root in roots:
            self.uses[root.index] = self.uses.get(root.index, 0) + 1
        self.inlined = {a.index for n in self.nodes for a in [self._fused(n)] if a is not None}

    def _fused(self, node: Node) -> Node | None:
        """The product that a sum takes in."""
        if node.op not in ("add", "sub"):
            return None
        for a in node.args:
            if a.op == "mul" and self.uses[a.index] == 1:
                return a
        return None

    def name(self, node: Node) -> str:
        if node.is_constant:
            return number(node.value)
        if node.op == "leaf":
            return self.leaf(node.leaf)
        return f"t{node.index}"

    def expression(self, node: Node) -> str:
        product = self._fused(node)
        if product is None:
            return OPERATIONS[node.op].cpp.format(*map(self.name, node.args))
        a, b = map(self.name, product.args)
        left, right = node.args
        if node.op == "add":
            return f"fma({a}, {b}, {self.name(right if left is product else left)})"
        if left is product:
            return f"fma({a}, {b}, -{self.name(right)})"
        return f"fma(-{a}, {b}, {self.name(left)})"

    def lines(self) -> list[str]:
        return [
            f"    const V {self.name(node)} = {self.expression(node)};"
            for node in self.nodes
            if node.args and node.index not in self.inlined
        ]


def header(cell: Compiled, name: str, comment: str) -> str:
    """The C++ header of a cell; its arguments are explained in csrc/cells/README.md."""
    G, S, K, C = len(cell.gates), len(cell.states), len(cell.kept), len(cell.parameters)
    kept = max(K, 1)
    ahead = _Writer((*cell.new, *cell.kept), _reader({"x": "wx", "r": "rh", "s": "s", "p": "p"}))
    da, drh = cell.backward[:G], cell.backward[G : 2 * G]
    ds, dp = cell.backward[2 * G : 2 * G + S], cell.backward[2 * G + S :]
    results = (*da, *drh[cell.split_from :], *ds, *dp)
    back = _Writer(results, _reader({"kept": "saved", "s": "s", "new": "s_new", "ds": "ds_new", "p": "p"}))

    def assign(array: str, nodes: Sequence[Node], writer: _Writer, first: int = 0) -> list[str]:
        return [f"    {array}[{k}] = {writer.name(n)};" for k, n in enumerate(nodes, first)]

    forward = ahead.lines() + assign("s_new", cell.new, ahead) + assign("saved", cell.kept, ahead)
    backward = back.lines() + assign("da", da, back)
    backward += assign("drh", drh[cell.split_from :], back, cell.split_from)
    backward += assign("ds", ds, back) + assign("dp", dp, back)
    parameters = [("const V", "p", C)] if C else []
    values = [("const V", "wx", G), ("const V", "rh", G), ("const V", "s", S), *parameters]
    values += [("V", "s_new", S), ("V", "saved", kept)]
    gradient = [("const V", "saved", kept), ("const V", "s", S), ("const V", "s_new", S), *parameters]
    gradient += [("const V", "ds_new", S), ("V", "da", G), ("V", "drh", G), ("V", "ds", S)]
    gradient += [("V", "dp", C)] if C else []
    lines = [
        *(f"// {line}".rstrip() for line in comment.splitlines()),
        "#pragma once",
        "",
        '#include "math/activations.h"',
        "",
        "namespace FASTRNN_NAMESPACE {",
        "",
        f"struct {name} {{",
        f"  static constexpr int kGates = {G}, kStates = {S}, kSaved = {K}, kParameters = {C};",
        f"  static constexpr int kSplitFrom = {cell.split_from};",
        f"  static constexpr bool kReadsHidden = {'true' if cell.reads_hidden else 'false'};",
        "",
        "  template <class M, class V>",
        "  FASTRNN_FN static void forward(" + _list(values) + ") {",
        "    using C [[maybe_unused]] = typename V::Lane;",
        *forward,
        "  }",
        "",
        "  template <class M, class V>",
        "  FASTRNN_FN static void backward(" + _list(gradient) + ") {",
        "    using C [[maybe_unused]] = typename V::Lane;",
        *backward,
        "  }",
        "};",
        "",
        "}  // namespace FASTRNN_NAMESPACE",
        "",
    ]
    return "\n".join(lines)


def _list(arguments: Sequence[tuple[str, str, int]]) -> str:
    return ", ".join(f"[[maybe_unused]] {kind} (&{name})[{size}]" for kind, name, size in arguments)


def _reader(arrays: Mapping[str, str]) -> Callable[[Leaf], str]:
    return lambda leaf: f"{arrays[leaf[0]]}[{leaf[1]}]"


def equations(cell: Compiled) -> str:
    """The step, its gradient and what is kept, one line each, for people."""
    names = {
        "x": [f"x.{n}" for n in cell.gates],
        "r": [f"r.{n}" for n in cell.gates],
        "s": [f"s.{n}" for n in cell.states],
        "new": [f"{n}'" for n in cell.states],
        "p": [f"p.{n}" for n in cell.parameters],
        "ds": [f"d{n}'" for n in cell.states],
        "kept": [f"k{k}" for k in range(len(cell.kept))],
    }

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
            row = OPERATIONS[node.op]
            form = row.text or f"{node.op}({', '.join(f'{{{k}}}' for k in range(row.arguments))})"
            out = form.format(*map(text, node.args))
            return out if whole or node.op not in ("add", "sub") else f"({out})"

        for node in nodes:
            if node.args and uses.get(node.index, 0) > 1 and node.index not in shown:
                label = f"t{node.index}"
                lines.append(f"  {label} = {text(node, True)}")
                shown[node.index] = label
        return lines + [
            f"  {label} = {text(node) if node.index in shown else text(node, True)}" for label, node in roots
        ]

    G, S = len(cell.gates), len(cell.states)
    out = [
        "step:",
        *block([*zip(names["new"], cell.new, strict=True), *zip(names["kept"], cell.kept, strict=True)]),
    ]
    labels = [f"d{n}" for kind in ("x", "r", "s", "p") for n in names[kind]]
    pairs = list(zip(labels, cell.backward, strict=True))
    pairs = pairs[:G] + pairs[G + cell.split_from : 2 * G] + pairs[2 * G :]
    out += ["gradient:", *block(pairs)]
    if cell.split_from == G:
        out.append("  dr = dx")
    elif cell.split_from:
        out.append(f"  dr = dx for {', '.join(cell.gates[: cell.split_from])}")
    ahead, back = (_operations(nodes) for nodes in ((*cell.new, *cell.kept), cell.backward))
    out.append(f"kept for the gradient: {len(cell.kept)} values a unit and step (k…), and the {S} states")
    out.append(f"element-wise operations a unit and step, in multiply-adds: {ahead:.0f} forward, {back:.0f} backward")
    return "\n".join(out)


def _operations(roots: Sequence[Node]) -> float:
    return sum(OPERATIONS[n.op].cost for n in reached(roots) if n.args)
