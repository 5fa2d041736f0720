"""Division of a step, or its gradient, into stages, for `csrc/cpu/staged.h`.

Threads synchronise between stages, because a product or a sum over the units reads the values of all units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from fastrnn.custom.graph import Leaf, Node, reached, substituted
from fastrnn.custom.operations import OPERATIONS, REDUCTIONS

#: Largest cost, in multiply-adds, of a value that later stages recompute instead of reading it from memory.
_RECOMPUTED = 1.0
_PRODUCTS = ("product", "transposed")
#: Leaves that are sums over the units, computed in this pass or saved by the forward pass.
SUMS = ("mean", "sum", "saved_mean", "saved_sum")


def of_rows(nodes: Iterable[Node]) -> set[int]:
    """Return the indices of the nodes with one value for all units of a row; `nodes` with arguments first."""
    shared: set[int] = set()
    for node in nodes:
        if node.op in REDUCTIONS or (node.leaf[0] in SUMS if node.op == "leaf" else _is_shared(node, shared)):
            shared.add(node.index)
    return shared


def _is_shared(node: Node, shared: set[int]) -> bool:
    return node.op not in _PRODUCTS and all(a.index in shared for a in node.args)


@dataclass(frozen=True)
class Product:
    """Product of one vector with several stacked matrices."""

    stage: int
    blocks: int
    first: int  # index of the first matrix in w_hh
    operand: int  # index of the operand; ~s for state s


@dataclass(frozen=True)
class Effect:
    """A value to write: `text` is the statement, with the value in place of {0}."""

    text: str
    node: Node
    last: bool = False  # only in the last stage


@dataclass(frozen=True)
class Stages:
    """A step or a gradient in stages.

    Attributes:
        effects: the values that each stage writes, computed from leaves only.
        temps, operands: their number.
        products: the products.
        totals: for each sum over the units, the stage that starts with it.
    """

    effects: tuple[tuple[Effect, ...], ...]
    temps: int
    operands: int
    products: tuple[Product, ...]
    totals: tuple[int, ...]


class Plan:
    """Assignment of computations to stages.

    Args:
        effects: the values to write.
        at_once: predicate for products whose result is available before the first stage: those of a state.
    """

    def __init__(self, effects: Iterable[Effect], at_once: Callable[[Node], bool] = lambda node: False) -> None:
        self.effects, self.at_once = list(effects), at_once
        self.nodes = reached(e.node for e in self.effects)
        self.stage: dict[int, int] = {}
        for node in self.nodes:
            self.stage[node.index] = self._stage_of(node)
        self.of_rows = of_rows(self.nodes)
        self.summed = list(dict.fromkeys(n.args[0] for n in self.nodes if n.op in REDUCTIONS))

    def _stage_of(self, node: Node) -> int:
        latest = max((self.stage[a.index] for a in node.args), default=0)
        between = node.op in REDUCTIONS or node.op in _PRODUCTS
        return latest + 1 if between and not self.at_once(node) else latest

    def add(self, effects: Iterable[Effect]) -> None:
        """Add effects on nodes that the plan already contains."""
        self.effects += effects

    def divided(self, product: Callable[[Node], int], products: Sequence[Product], operands: int) -> Stages:
        """Return the stages. `product` maps a product node to the index of its leaf ("product", ·)."""
        count = 1 + max(self.stage.values(), default=0)
        totals = {node.index: k for k, node in enumerate(self.summed)}
        parts = [Effect(f"row.add({k}, {{0}});", node) for k, node in enumerate(self.summed)]
        at: list[list[Effect]] = [[] for _ in range(count)]
        for effect in (*self.effects, *parts):
            at[count - 1 if effect.last else self.stage[effect.node.index]].append(effect)
        temps: dict[int, int] = {}
        divided: list[tuple[Effect, ...]] = []
        for stage in reversed(range(count)):  # later stages determine what earlier ones must store
            leaves: dict[int, Leaf] = {}

            def is_read(node: Node, stage: int = stage, leaves: dict[int, Leaf] = leaves) -> bool:
                """Return True if the node is read, not computed, in this stage, and record its leaf."""
                if not node.args:
                    return True
                if node.op in REDUCTIONS:
                    leaves[node.index] = (node.op, totals[node.args[0].index])
                elif node.op in _PRODUCTS:
                    leaves[node.index] = ("product", product(node))
                elif self.stage[node.index] < stage and not self._is_recomputed(node):
                    if node.index not in temps:
                        temps[node.index] = len(temps)
                        text = f"row.set_temp({temps[node.index]}, {{0}});"
                        at[self.stage[node.index]].append(Effect(text, node))
                    leaves[node.index] = ("temp", temps[node.index])
                else:
                    return False
                return True

            roots = [e.node for e in at[stage]]
            reached(roots, is_read)
            others = {index: roots[0].graph.leaf(*leaf) for index, leaf in leaves.items()} if roots else {}
            new = substituted(roots, others)
            divided.insert(0, tuple(Effect(e.text, n) for e, n in zip(at[stage], new, strict=True)))
        totals_at = tuple(self.stage[node.index] + 1 for node in self.summed)
        return Stages(tuple(divided), len(temps), operands, tuple(products), totals_at)

    def _is_recomputed(self, node: Node) -> bool:
        """Return True for a cheap value with at most one unavailable argument.

        That argument is stored instead of the value, and may serve other values too.
        """
        if node.index in self.of_rows:  # costs one operation per row
            return True
        absent = {a.index for a in node.args if a.args and a.op not in _PRODUCTS and a.index not in self.of_rows}
        return len(absent) <= 1 and OPERATIONS[node.op].cost <= _RECOMPUTED
