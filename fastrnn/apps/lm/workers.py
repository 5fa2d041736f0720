"""The processes that train together, each with its share of the rows; most often one."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def launched() -> bool:
    """Whether torchrun (or the like) has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1


@contextmanager
def process_group() -> Iterator[None]:
    """torch's process group as the environment describes it: gloo on the CPU, nccl on GPUs. Nothing for one process."""
    if not launched() or dist.is_initialized():
        yield
        return
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


class Workers:
    """This process among those of torch's default process group; alone where there is none.

    Attributes:
        rank, size: which one of how many.
        device: where this one computes.

    Raises:
        ValueError: the device is not there.
    """

    def __init__(self, device: str) -> None:
        several = dist.is_available() and dist.is_initialized()
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
        if device == "cuda" and several:
            device = f"cuda:{os.environ.get('LOCAL_RANK', self.rank)}"
        self.device = _device(device)

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def mine(self, batch: int) -> range:
        """This one's share of B rows.

        Raises:
            ValueError: they cannot be shared out evenly.
        """
        if batch % self.size:
            raise ValueError(f"batch: expected a multiple of the {self.size} processes, got {batch}")
        share = batch // self.size
        return range(self.rank * share, (self.rank + 1) * share)

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over the processes."""
        if self.size == 1:
            return module
        data_parallel = nn.parallel.DistributedDataParallel
        known = inspect.signature(data_parallel).parameters
        # No buffer of the model ever changes. Newer releases of torch have another name for it.
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {name: False}
        return data_parallel(module, **options)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over the processes."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.size
        return value

    def most(self, value: int) -> int:
        """The largest of everybody's numbers."""
        if self.size == 1:
            return value
        found = torch.tensor([value], dtype=torch.int32, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found.item())

    def gather(self, value: Tensor) -> list[Tensor]:
        """Everybody's tensor of this shape, in the order of ranks, on the CPU."""
        if self.size == 1:
            return [value.detach().cpu().clone()]
        value = value.detach().to(self.device).contiguous()
        found = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(found, value)
        return [one.cpu() for one in found]

    def wait(self) -> None:
        """Until all have come here."""
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
            raise ValueError(f"device: expected one of the {count} GPUs that torch can use, got {name!r}")
        torch.cuda.set_device(device)
    return device
