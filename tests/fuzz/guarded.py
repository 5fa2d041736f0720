"""Tensors in memory whose end, or beginning, touches a page that cannot be accessed.

While a call runs, the memory is read-only: any access outside it, and any write to it, ends the process with a signal.
"""

from __future__ import annotations

import ctypes
import mmap

import torch
from torch import Tensor

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_NONE, _READ, _WRITE = 0, mmap.PROT_READ, mmap.PROT_WRITE
PAGE = mmap.PAGESIZE


class Memory:
    """Guarded memory of several tensors, for a with statement, at whose end it is unmapped."""

    def __init__(self) -> None:
        self._mappings: list[tuple[int, int]] = []  # address of the first guard page, bytes in between
        self._tensors: list[tuple[Tensor, bytes, int, int]] = []

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None:
        for address, size in self._mappings:
            _LIBC.munmap(address, size + 2 * PAGE)

    def place(self, t: Tensor, at_end: bool, strides: tuple[int, ...] | None = None) -> Tensor:
        """Copy `t` into guarded memory: its last element ends, or its first begins, at a guard page."""
        strides = t.contiguous().stride() if strides is None else strides
        extent = 1 + sum((n - 1) * s for n, s in zip(t.shape, strides, strict=True)) if t.numel() else 0
        nbytes = extent * t.itemsize
        size = max(PAGE, -(-nbytes // PAGE) * PAGE)
        base = _LIBC.mmap(None, size + 2 * PAGE, _NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        if base in (None, ctypes.c_void_p(-1).value):
            raise MemoryError(f"mmap of {size} bytes failed")
        self._mappings.append((base, size))
        self._protect(base, size, _READ | _WRITE)
        start = base + PAGE + (size - nbytes if at_end else 0)
        if not nbytes:
            return t
        flat = torch.frombuffer((ctypes.c_char * nbytes).from_address(start), dtype=t.dtype)
        placed = flat.as_strided(t.shape, strides)
        placed.copy_(t)
        self._tensors.append((placed, ctypes.string_at(start, nbytes), start, nbytes))
        return placed

    def lock(self) -> None:
        """Make all of it read-only."""
        for base, size in self._mappings:
            self._protect(base, size, _READ)

    def changed(self) -> bool:
        """Return True if a byte differs from what was placed."""
        return any(ctypes.string_at(start, n) != before for _, before, start, n in self._tensors)

    def overlaps(self, t: Tensor) -> bool:
        """Return True if `t` lies in this memory."""
        at = t.untyped_storage().data_ptr() if t.layout is torch.strided and t.device.type == "cpu" else 0
        return any(start <= at < start + n for _, _, start, n in self._tensors)

    @staticmethod
    def _protect(base: int, size: int, access: int) -> None:
        if _LIBC.mprotect(base + PAGE, size, access) != 0:
            raise OSError(ctypes.get_errno(), "mprotect failed")
