"""Validation of a checkpoint's content: an intact file may still come from another program."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastrnn.apps.lm.options import Options


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _tensor(value: Any) -> bool:
    return type(value) is Tensor and value.is_cpu and value.layout is torch.strided


def _tensors(value: Any) -> bool:
    return isinstance(value, list) and all(map(_tensor, value))


def _vocabulary(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("unit"), str):
        return False
    return value["unit"] != "character" or isinstance(value.get("characters"), str)


def _optimizer(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("state"), dict):
        return False
    groups = value.get("param_groups")
    return isinstance(groups, list) and all(isinstance(g, dict) and isinstance(g.get("params"), list) for g in groups)


def _random(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _tensors(value.get(name)) and all(t.dtype is torch.uint8 for t in value[name]) for name in ("cpu", "cuda")
    )


def _log(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("loss"), list) or not value["loss"]:
        return False
    place = value.get("bytes")
    return all(map(_number, value["loss"])) and _count(value.get("steps")) and (place is None or _count(place))


def _best(value: Any) -> bool:
    return value is None or (isinstance(value, list) and len(value) == 2 and _number(value[0]) and _count(value[1]))


def _weights(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(k, str) and _tensor(v) for k, v in value.items())


#: The expected value of each part, as text and as a test. Sizes follow from the options.
_PARTS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "options": ("a dict", lambda value: isinstance(value, dict)),
    "vocabulary": ("a dict of a unit and its characters", _vocabulary),
    "text": ("a dict of bytes and sha256", lambda value: isinstance(value, dict)),
    "model": ("a dict of dense CPU tensors", _weights),
    "optimizer": ("the state of an optimiser", _optimizer),
    "step": ("a count", _count),
    "epoch": ("a count", _count),
    "chunk": ("a count", _count),
    "states": ("None or a list of dense CPU tensors", lambda value: value is None or _tensors(value)),
    "random": ("lists of uint8 tensors, cpu and cuda", _random),
    "log": ("bytes, losses and steps", _log),
    "best": ("None or a loss and a step", _best),
    "seconds": ("a number", lambda value: _number(value) and math.isfinite(value)),
}


def problem_of(content: dict[str, Any]) -> str:
    """Return the problem with the first invalid part, irrespective of the options; an empty string if there is none."""
    for name, (words, fits) in _PARTS.items():
        if not fits(content[name]):
            return f"{name}: expected {words}, got {type(content[name]).__name__}"
    return ""


def in_a_line(error: Exception) -> str:
    """Return the message of an exception, which may have several lines, as one line."""
    return " ".join(str(error).split())


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load a checkpoint's weights into a model of the same dtypes, which torch would otherwise convert.

    Raises:
        ValueError: a dtype differs.
        RuntimeError: names or shapes differ.
    """
    for name, own in model.state_dict().items():
        if name in weights and weights[name].dtype != own.dtype:
            raise ValueError(f"model: expected {name} of {own.dtype}, got {weights[name].dtype}")
    model.load_state_dict(weights)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any], used: bool) -> None:
    """Load a checkpoint's state into a new optimiser with the same options.

    Args:
        used: True if the optimiser has made a step and so has a state for every parameter.

    Raises:
        ValueError: a setting, a shape or a number of tensors differs from the optimiser's own.
    """
    for own, given in zip(optimizer.param_groups, state["param_groups"], strict=True):
        for name, value in own.items():
            if name not in ("params", "lr") and name in given and given[name] != value:
                raise ValueError(f"optimizer: expected {name} {value}, got {given[name]}")
    for parameter_state in state["state"].values():
        for name, value in parameter_state.items():
            if isinstance(value, Tensor) and not (_tensor(value) and value.is_floating_point()):
                raise ValueError(f"optimizer: expected dense CPU tensors of real numbers, got {name} of {value.dtype}")
    wanted = _state_of(optimizer) if used else {}
    optimizer.load_state_dict(state)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            loaded = optimizer.state.get(parameter, {})
            if missing := [name for name in wanted if name not in loaded]:
                raise ValueError(f"optimizer: expected {', '.join(missing)} of every parameter, got one without")
            for name, value in loaded.items():
                shape = parameter.shape if wanted.get(name, True) else torch.Size()
                if isinstance(value, Tensor) and value.shape != shape:
                    raise ValueError(f"optimizer: expected {name} of shape {tuple(shape)}, got {tuple(value.shape)}")
                if wanted.get(name) is not None and not isinstance(value, Tensor):
                    raise ValueError(f"optimizer: expected {name} to be a tensor, got {type(value).__name__}")


def _state_of(optimizer: torch.optim.Optimizer) -> dict[str, bool | None]:
    """Return an optimiser's state of a parameter after a step, by name.

    True stands for a tensor of the parameter's shape, False for a single number, None for another value.
    """
    parameter = nn.Parameter(torch.zeros(2, 3))
    parameter.grad = torch.zeros_like(parameter)
    kind: Callable[..., torch.optim.Optimizer] = type(optimizer)
    settings = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
    probe = kind([{"params": [parameter], **settings}], lr=settings["lr"])
    probe.step()
    parameter_state = probe.state[parameter]
    return {
        name: value.shape == parameter.shape if isinstance(value, Tensor) else None
        for name, value in parameter_state.items()
        if value is not None
    }


def check_progress(content: dict[str, Any], chunks: int) -> None:
    """Raise ValueError unless the step is consistent with the epoch and the chunk."""
    step, epoch, chunk = content["step"], content["epoch"], content["chunk"]
    if chunk >= chunks or step != epoch * chunks + chunk:
        raise ValueError(
            f"step: expected epoch · {chunks} + chunk of a text of {chunks} chunks, got step {step}, epoch {epoch}, "
            f"chunk {chunk}"
        )


def check_states(states: list[Tensor] | None, options: Options, layers: nn.Module) -> None:
    """Raise ValueError unless the states of all batch rows match those that the layers return."""
    if states is None:
        return
    cell = getattr(layers, "cell", None)
    count = len(cell.states) if cell is not None else 1 + (options.cell == "lstm")
    if len(states) != count:
        raise ValueError(f"states: expected {count} tensors, got {len(states)}")
    shape = (options.layers, options.batch, options.hidden)
    dtypes = {torch.float64 if options.dtype == "float64" else torch.float32}
    if options.dtype == "bfloat16":
        dtypes.add(torch.bfloat16)
    for state in states:
        if tuple(state.shape) != shape:
            raise ValueError(f"states: expected shape {shape}, got {tuple(state.shape)}")
        if state.dtype not in dtypes:
            raise ValueError(f"states: expected {' or '.join(map(str, sorted(dtypes, key=str)))}, got {state.dtype}")
