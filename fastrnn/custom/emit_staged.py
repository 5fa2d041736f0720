"""Generation of the C++ header of a cell whose step has stages, for `csrc/cpu/staged.h`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fastrnn.custom.graph import Leaf, Node, reached, substituted
from fastrnn.custom.stages import Effect, Plan, Product, Stages, of_rows
from fastrnn.custom.writer import Writer

if TYPE_CHECKING:
    from fastrnn.custom.emit import Compiled

_BLOCKS = 1000  # above the number of blocks of any product
_COMMON = {"p": "parameter", "mean": "mean", "sum": "total", "temp": "temp"}
_AHEAD = {"x": "x", "s": "state", **_COMMON}
_BACK = {"saved": "saved", "s": "old_state", "new": "new_state", "m": "vector", "ds": "state", **_COMMON}
_BACK |= {"saved_mean": "saved_mean", "saved_sum": "saved_total"}


def _state_of(node: Node) -> int | None:
    return node.leaf[1] if node.leaf[0] == "s" else None


def ahead(cell: Compiled) -> Stages:
    """Divide the step into stages."""
    step = cell.step
    effects = [Effect(f"row.new_state({k}, {{0}});", n) for k, n in enumerate(step.new)]
    effects += [Effect(f"row.save({k}, {{0}});", n, last=True) for k, n in enumerate(cell.saved)]
    effects += [Effect(f"row.save_vector({k}, {{0}});", n) for k, n in enumerate(step.vectors)]
    plan = Plan(effects, lambda node: node.op == "product" and _state_of(node.args[0]) is not None)
    products, operands, first = [], 0, 0
    places: dict[int, int] = {}
    for j, group in enumerate(step.groups):
        places |= {matrix: j * _BLOCKS + block for block, matrix in enumerate(group.matrices)}
        state = _state_of(group.vector)
        stage = min(plan.stage[n.index] for n in plan.nodes if n.op == "product" and n.args[0] is group.vector)
        products.append(Product(stage, len(group.matrices), first, operands if state is None else ~state))
        if state is None:
            plan.add([Effect(f"row.set_operand({operands}, 0, {{0}});", group.vector)])
            operands += 1
        first += len(group.matrices)
    return plan.divided(lambda node: places[node.leaf[1]], products, operands)


def back(cell: Compiled) -> Stages:
    """Divide the gradient into stages."""
    g = cell.gradients
    effects = [Effect(f"row.set_da({k}, {{0}});", n) for k, n in enumerate(g.x)]
    effects += [Effect(f"row.set_drh({k}, {{0}});", n) for k, n in enumerate(g.r + g.q)]
    effects += [Effect(f"row.set_state({k}, {{0}});", n) for k, n in enumerate(g.s)]
    effects += [Effect(f"row.set_dparameter({k}, {{0}});", n) for k, n in enumerate(g.p)]
    plan = Plan(effects)
    first = [sum(len(group.matrices) for group in cell.step.groups[:j]) for j in range(len(cell.step.groups))]
    products: list[Product] = []
    places: dict[int, int] = {}
    for node in plan.nodes:
        if node.op == "transposed":
            j, o = node.leaf[1], len(products)
            places[j] = o * _BLOCKS
            products.append(Product(plan.stage[node.index], len(node.args), first[j], o))
            plan.add([Effect(f"row.set_operand({o}, {b}, {{0}});", a) for b, a in enumerate(node.args)])
    return plan.divided(lambda node: places[node.leaf[1]], products, len(products))


def _read(leaf: Leaf, names: Mapping[str, str]) -> str:
    kind, k = leaf
    return f"row.product({k // _BLOCKS}, {k % _BLOCKS})" if kind == "product" else f"row.{names[kind]}({k})"


def _array(kind: str, name: str, values: Sequence[str]) -> str:
    """Declare an array with one extra element, because C++ has no empty arrays."""
    return f"    static constexpr {kind} {name}[] = {{{', '.join([*values, kind + '{}'])}}};"


def _reciprocals(roots: Sequence[Node]) -> tuple[Node, ...]:
    """Replace quotients by a per-row value by products with its reciprocal, which is computed once for the row."""
    nodes = reached(roots)
    rows = of_rows(nodes)
    done: dict[int, Node] = {}
    for node in nodes:
        args = tuple(done[a.index] for a in node.args)
        if not args:
            done[node.index] = node
        elif node.op == "div" and node.index not in rows and args[1].index in rows and not args[1].is_constant:
            done[node.index] = args[0] * (1.0 / args[1])
        else:
            done[node.index] = node.graph.again(node, args)
    return tuple(done[root.index] for root in roots)


def _divided(roots: Sequence[Node]) -> tuple[tuple[Node, ...], list[Node]]:
    """Return `roots` with leaves ("row", k) for values that all units of a row share, and these values."""
    roots = _reciprocals(roots)
    nodes = reached(roots)
    rows = of_rows(nodes)
    used = [a for n in nodes if n.index not in rows for a in n.args] + list(roots)
    values = list(dict.fromkeys(n for n in used if n.index in rows and not n.is_constant))
    return substituted(roots, {n.index: n.graph.leaf("row", k) for k, n in enumerate(values)}), values


def _statements(roots: Sequence[Node], names: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return the statements that compute `roots`, and the names of the results.

    All reads come before any writes, because saved values overwrite the gates.
    """
    writer = Writer(roots, lambda leaf: f"{leaf[0]}{leaf[1]}")
    reads = dict.fromkeys(n.leaf for n in reached(roots) if n.op == "leaf")
    lines = [f"        const V {leaf[0]}{leaf[1]} = {_read(leaf, names)};" for leaf in reads]
    return [*lines, *(f"    {line}" for line in writer.lines())], [writer.name(root) for root in roots]


def _function(name: str, arguments: str, stages: Sequence[Sequence[str]]) -> list[str]:
    lines = [
        "",
        "    template <int kStage, class M, class Row>",
        f"    FASTRNN_FN static void {name}([[maybe_unused]] const Row& row{arguments}) {{",
        "      using V [[maybe_unused]] = typename Row::V;",
        "      using C [[maybe_unused]] = typename Row::C;",
    ]
    for stage, statements in enumerate(stages):
        lines += [f"      if constexpr (kStage == {stage}) {{", *statements, "      }"]
    return [*lines, "    }"]


def _struct(name: str, stages: Stages, names: Mapping[str, str]) -> list[str]:
    products = [f"{{{p.stage}, {p.blocks}, {p.first}, {p.operand}}}" for p in stages.products]
    of_row, of_units, most = [], [], 0
    for effects in stages.effects:
        roots, values = _divided([e.node for e in effects])
        most = max(most, len(values))
        lines, results = _statements(values, names)
        of_row.append([*lines, *(f"        {v}.store(values + {k} * V::kLanes);" for k, v in enumerate(results))])
        lines, results = _statements(roots, {**names, "row": "value"})
        of_units.append([*lines, *(f"        {e.text.format(v)}" for e, v in zip(effects, results, strict=True))])
    return [
        "",
        f"  struct {name} {{",
        f"    static constexpr int kStages = {len(stages.effects)}, kTemps = {stages.temps};",
        f"    static constexpr int kTotals = {len(stages.totals)}, kOperands = {stages.operands};",
        f"    static constexpr int kGroups = {len(products)}, kValues = {most};",
        _array("StagedGroup", "kGroup", products),
        _array("int", "kTotalStage", [str(stage) for stage in stages.totals]),
        *_function("of_row", ", [[maybe_unused]] typename Row::C* values", of_row),
        *_function("run", "", of_units),
        "  };",
    ]


def body(cell: Compiled) -> list[str]:
    """Return the members of the cell's struct besides its sizes."""
    groups = [group for group in cell.step.groups if _state_of(group.vector) != 0]
    return [
        f"  static constexpr int kVectors = {len(groups)};",
        _array("int", "kVectorBlocks", [str(len(group.matrices)) for group in groups])[2:],
        *_struct("Ahead", ahead(cell), _AHEAD),
        *_struct("Back", back(cell), _BACK),
    ]
