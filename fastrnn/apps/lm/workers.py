"""Processes that train together, each with its part of the batch rows; usually only one."""

from __future__ import annotations

import gc
import importlib
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def launched() -> bool:
    """Return True if torchrun or a similar launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1


@contextmanager
def process_group() -> Iterator[None]:
    """Initialise torch's process group from the environment: gloo on the CPU, nccl on GPUs. No-op for one process."""
    if not launched() or dist.is_initialized():
        yield
        return
    # DistributedDataParallel imports this, and a group initialised by then is never destroyed. gloo's threads then
    # outlive the training, and one that releases a tensor while the interpreter ends aborts the process.
    importlib.import_module("torch._dynamo")
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    try:
        yield
    finally:
        gc.collect()  # models of the group that are parts of reference cycles
        dist.destroy_process_group()


class Workers:
    """This process within torch's default process group, if there is one.

    Attributes:
        rank, size: the index of this process, and their number.
        device: the device of this process.

    Raises:
        ValueError: the device does not exist.
    """

    def __init__(self, device: str) -> None:
        several = dist.is_available() and dist.is_initialized()
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
        if device == "cuda" and several:
            device = f"cuda:{os.environ.get('LOCAL_RANK', self.rank)}"
        self.device = _device(device)

    @property
    def first(self) -> bool:
        """True for the process that writes the files."""
        return self.rank == 0

    def mine(self, batch: int) -> range:
        """Return this process's part of B batch rows.

        Raises:
            ValueError: they cannot be divided evenly.
        """
        if batch % self.size:
            raise ValueError(f"batch: expected a multiple of the {self.size} processes, got {batch}")
        share = batch // self.size
        return range(self.rank * share, (self.rank + 1) * share)

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module with gradients averaged over the processes."""
        if self.size == 1:
            return module
        data_parallel = nn.parallel.DistributedDataParallel
        known = inspect.signature(data_parallel).parameters
        # The model's buffers never change. Newer releases of torch have renamed the option.
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {name: False}
        return data_parallel(module, **options)

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a tensor over the processes."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.size
        return value

    def most(self, value: int) -> int:
        """Return the largest of all processes' numbers."""
        if self.size == 1:
            return value
        largest = torch.tensor([value], dtype=torch.int32, device=self.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest.item())

    def gather(self, value: Tensor) -> list[Tensor]:
        """Return all processes' tensors of this shape, in the order of ranks, on the CPU."""
        if self.size == 1:
            return [value.detach().cpu().clone()]
        value = value.detach().to(self.device).contiguous()
        tensors = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(tensors, value)
        return [one.cpu() for one in tensors]

    def wait(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: expected cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ValueError(f"device: expected one of the {count} GPUs available to torch, got {name!r}")
        torch.cuda.set_device(device)
    return device
