"""Divides a step, or its gradient, into stages: between them threads have to meet, since a product or a sum over the
units reads what all of them computed. `csrc/cpu/staged.h` runs the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from fastrnn.custom.graph import Leaf, Node, reached, substituted
from fastrnn.custom.operations import OPERATIONS, REDUCTIONS

#: What later stages compute again instead of reading it from memory: multiply-adds.
_AGAIN = 1.0
_PRODUCTS = ("product", "transposed")
#: Leaves that are sums over the units, now or kept from the forward pass.
SUMS = ("mean", "sum", "kept_mean", "kept_sum")


def of_rows(nodes: Iterable[Node]) -> set[int]:
    """Indices of the nodes that have one value for all units of a row; `nodes` with arguments first."""
    found: set[int] = set()
    for node in nodes:
        if node.op in REDUCTIONS or (node.leaf[0] in SUMS if node.op == "leaf" else _among(node, found)):
            found.add(node.index)
    return found


def _among(node: Node, found: set[int]) -> bool:
    return node.op not in _PRODUCTS and all(a.index in found for a in node.args)


@dataclass(frozen=True)
class Product:
    """Of one vector with some matrices, one below the other."""

    stage: int
    blocks: int
    first: int  # of the matrices, as they lie in w_hh
    operand: int  # number of what is multiplied; ~s for state s


@dataclass(frozen=True)
class Effect:
    """Something that is written: `text` with the value in place of {0}."""

    text: str
    node: Node
    last: bool = False  # only in the last stage


@dataclass(frozen=True)
class Stages:
    """A step or a gradient in stages.

    Attributes:
        effects: of each stage what it writes, computed from leaves alone.
        temps, operands: how many there are.
        products: what the products are.
        totals: of each sum over the units the stage that begins with it.
    """

    effects: tuple[tuple[Effect, ...], ...]
    temps: int
    operands: int
    products: tuple[Product, ...]
    totals: tuple[int, ...]


class Plan:
    """Which stage computes what.

    Args:
        effects: what is to be written.
        at_once: whether a product's result is there before the first stage: that of a state.
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
        """Of nodes that are known."""
        self.effects += effects

    def divided(self, product: Callable[[Node], int], products: Sequence[Product], operands: int) -> Stages:
        """The stages. `product`: which result of a product a node is, as the leaf ("product", ·) has it."""
        count = 1 + max(self.stage.values(), default=0)
        totals = {node.index: k for k, node in enumerate(self.summed)}
        parts = [Effect(f"row.add({k}, {{0}});", node) for k, node in enumerate(self.summed)]
        at: list[list[Effect]] = [[] for _ in range(count)]
        for effect in (*self.effects, *parts):
            at[count - 1 if effect.last else self.stage[effect.node.index]].append(effect)
        temps: dict[int, int] = {}
        found: list[tuple[Effect, ...]] = []
        for stage in reversed(range(count)):  # a later one says what an earlier one has to keep
            leaves: dict[int, Leaf] = {}

            def is_there(node: Node, stage: int = stage, leaves: dict[int, Leaf] = leaves) -> bool:
                """Whether the node is read, not computed, in this stage; how."""
                if not node.args:
                    return True
                if node.op in REDUCTIONS:
                    leaves[node.index] = (node.op, totals[node.args[0].index])
                elif node.op in _PRODUCTS:
                    leaves[node.index] = ("product", product(node))
                elif self.stage[node.index] < stage and not self._computed_again(node):
                    if node.index not in temps:
                        temps[node.index] = len(temps)
                        text = f"row.set_temp({temps[node.index]}, {{0}});"
                        at[self.stage[node.index]].append(Effect(text, node))
                    leaves[node.index] = ("temp", temps[node.index])
                else:
                    return False
                return True

            roots = [e.node for e in at[stage]]
            reached(roots, is_there)
            others = {index: roots[0].graph.leaf(*leaf) for index, leaf in leaves.items()} if roots else {}
            new = substituted(roots, others)
            found.insert(0, tuple(Effect(e.text, n) for e, n in zip(at[stage], new, strict=True)))
        totals_at = tuple(self.stage[node.index] + 1 for node in self.summed)
        return Stages(tuple(found), len(temps), operands, tuple(products), totals_at)

    def _computed_again(self, node: Node) -> bool:
        """What is cheap and made of one value at most that is not there anyway: that one is kept instead, and may serve
        others too.
        """
        if node.index in self.of_rows:  # once for a row
            return True
        absent = {a.index for a in node.args if a.args and a.op not in _PRODUCTS and a.index not in self.of_rows}
        return len(absent) <= 1 and OPERATIONS[node.op].cost <= _AGAIN
