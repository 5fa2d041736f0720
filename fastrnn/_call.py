"""One call of one layer in one direction over a sequence, as an object.

Only this module converts a call to the flat list of arguments that ``autograd.Function``, the operators and the
compiled part take, and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

#: The number of differentiable inputs before the states: x, w_ih, w_hh, b_ih, b_hh, w_hr.
N_FIXED = 6
#: Tensors that a forward pass saves for backward besides y.
N_SAVED = 4


class LayerWeights(NamedTuple):
    """Weights of one layer in one direction, named as in torch.nn.

    G is the number of gates of the cell, P the width of ``h``: that of the projection, or H.

    Example:
        >>> gru = fastrnn.GRU(3, 4)
        >>> weights = fastrnn.functional.LayerWeights(gru.weight_ih_l0, gru.weight_hh_l0)
        >>> y, state = fastrnn.functional.sequence("gru", torch.randn(5, 2, 3), weights)
        >>> y.shape
        torch.Size([5, 2, 4])
    """

    #: (G·H, I), or None if the input is already the input product
    w_ih: Tensor | None
    #: (G·H, P). For a custom cell: the gates that multiply h, then those that multiply another vector, then one row
    #: for each per-unit parameter
    w_hh: Tensor
    #: (G·H) or None
    b_ih: Tensor | None = None
    #: (G·H) or None
    b_hh: Tensor | None = None
    #: (P, H) or None: no projection
    w_hr: Tensor | None = None

    @property
    def hidden(self) -> int:
        """H, the width of all states but h."""
        return self.w_hh.shape[1] if self.w_hr is None else self.w_hr.shape[1]

    @property
    def projected(self) -> int:
        """P, the width of h."""
        return self.w_hh.shape[1]


class Call(NamedTuple):
    """One call of a layer; T, B, I, H, P and G as in docs/design/0001-spine.md.

    A call built from other values than tensors, such as vmap's ``in_dims`` or one flag for each input, has these values
    in place of the tensors.
    """

    #: name of the cell, as registered with the operators
    cell: str
    #: (T, B, I), or packed (N, I); without ``w_ih`` the input product itself, (…, G·H)
    x: Tensor
    weights: LayerWeights
    #: initial states, each (B, P or H); empty: zeros
    states: tuple[Tensor, ...] = ()
    #: states that segments after a reset start from; empty: the initial states
    restart: tuple[Tensor, ...] = ()
    #: (T) int64, batch rows of each time step of packed input
    batch_sizes: Tensor | None = None
    #: (B) integers
    lengths: Tensor | None = None
    #: (T, B) bool, true at the first time step of a segment
    reset: Tensor | None = None
    reverse: bool = False
    #: > 0: elements of ∂L/∂h_t are clipped to ±clip
    clip: float = 0.0

    @property
    def layout(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The tensors that describe the row layout: batch_sizes, lengths, reset."""
        return self.batch_sizes, self.lengths, self.reset

    @property
    def inputs(self) -> tuple[Any, ...]:
        """The differentiable inputs: x, the weights, the initial states, the states after a reset."""
        return (self.x, *self.weights, *self.states, *self.restart)

    def with_inputs(self, inputs: Sequence[Any]) -> Call:
        """The same call with other `inputs`."""
        return Call.of_flat(*self.setting, *self.layout, *inputs)

    @property
    def setting(self) -> tuple[Any, ...]:
        """The arguments that are not tensors, and the number of initial states."""
        return self.cell, self.reverse, self.clip, len(self.states)

    @property
    def tensors(self) -> tuple[Any, ...]:
        return (*self.layout, *self.inputs)

    def flat(self) -> tuple[Any, ...]:
        """Return the call as a list of arguments for `of_flat`: its setting, then its tensors."""
        return (*self.setting, *self.tensors)

    @staticmethod
    def of_flat(cell: Any, reverse: Any, clip: Any, states: Any, *tensors: Any, like: Call | None = None) -> Call:
        """Rebuild a call from such a list; with ``like``, from other values in the places of that call's arguments."""
        layout, inputs = tensors[:3], tensors[3:]
        end = N_FIXED + (states if like is None else len(like.states))
        weights = LayerWeights(*inputs[1:N_FIXED])
        given, restart = tuple(inputs[N_FIXED:end]), tuple(inputs[end:])
        batch_sizes, lengths, reset = layout
        return Call(cell, inputs[0], weights, given, restart, batch_sizes, lengths, reset, reverse, clip)


def save(ctx: Any, call: Call, *results: Tensor | None) -> None:
    """Save a call and its results for the backward pass of a Function whose last arguments are ``call.flat()``."""
    ctx.setting, ctx.count = call.setting, len(call.tensors)
    ctx.save_for_backward(*call.tensors, *results)


def saved(ctx: Any) -> tuple[Call, tuple[Any, ...]]:
    """Return the call and the results that `save` saved."""
    tensors = ctx.saved_tensors
    return Call.of_flat(*ctx.setting, *tensors[: ctx.count]), tensors[ctx.count :]


def needs_of(ctx: Any, call: Call) -> Any:
    """Return the call with flags in place of its tensors: True if the input needs a gradient."""
    return Call.of_flat(*ctx.needs_input_grad[-len(call.flat()) :], like=call)


def as_returned(ctx: Any, needs: Any, grads: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Return the result of such a Function's backward: gradients of inputs that need one, None for other arguments."""
    before = len(ctx.needs_input_grad) - len(needs.inputs)
    return (None,) * before + tuple(g if need else None for g, need in zip(grads, needs.inputs, strict=True))


class Wanted(NamedTuple):
    """Flags for the parts of a backward pass to compute, in the order of csrc/ops/call.h."""

    x: bool = False
    w_ih: bool = False
    w_hh: bool = False
    b_ih: bool = False
    b_hh: bool = False
    w_hr: bool = False
    #: gradients of the initial states, and of the states after resets
    states: bool = False
    restart: bool = False
    #: ∂L/∂(W·x) (…, G·H) and ∂L/∂(R·h) (…, R·H)
    products: bool = False
    #: ∂L/∂h_t, all paths together (…, P)
    hidden: bool = False
    #: the part of each state's gradient that comes from later steps (…, P or H)
    later: bool = False

    @property
    def weights(self) -> bool:
        return any((self.w_ih, self.w_hh, self.b_ih, self.b_hh, self.w_hr))


def wanted_of(needs: Any) -> Wanted:
    """Return the gradients to compute, given a call with flags in place of its inputs."""
    x, w_ih, w_hh, b_ih, b_hh, w_hr = needs.inputs[:N_FIXED]
    return Wanted(x, w_ih, w_hh, b_ih, b_hh, w_hr, any(needs.states), any(needs.restart))


class Gradients(NamedTuple):
    """Results of a backward pass; None or empty where not requested."""

    fixed: tuple[Tensor | None, ...]
    states: tuple[Tensor, ...] = ()
    restart: tuple[Tensor, ...] = ()
    products: tuple[Tensor, ...] = ()
    hidden: tuple[Tensor, ...] = ()
    later: tuple[Tensor, ...] = ()

    @staticmethod
    def of_flat(results: Sequence[Tensor], wanted: Wanted, states: int, restarts: int) -> Gradients:
        """Split the operator's results, for a cell with ``states`` states and a call with ``restarts`` restarts."""
        rest = list(results)

        def take(there: bool, count: int) -> tuple[Tensor, ...]:
            taken = tuple(rest[:count]) if there else ()
            del rest[: len(taken)]
            return taken

        fixed = tuple(g if want else None for g, want in zip(take(True, N_FIXED), wanted, strict=False))
        counts = ((wanted.states, states), (wanted.restart, restarts), (wanted.products, 2), (wanted.hidden, 1))
        initial, restart, products, hidden = (take(*each) for each in counts)
        return Gradients(fixed, initial, restart, products, hidden, take(wanted.later, states))

    def of_inputs(self, call: Call) -> list[Tensor | None]:
        """Return a gradient or None for each of the call's `inputs`."""
        states = self.states or (None,) * len(call.states)
        return [*self.fixed, *states, *(self.restart or (None,) * len(call.restart))]
