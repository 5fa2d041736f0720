"""The quotients of activations on a GPU: an approximation and a Newton step (csrc/simd/scalar.h)."""

from __future__ import annotations

import ctypes

import numpy as np
from emulated import library


def quotients(b: np.ndarray, refined: bool) -> np.ndarray:
    y = np.empty_like(b)
    pointers = (array.ctypes.data_as(ctypes.c_void_p) for array in (b, y))
    library().lib.emulated_reciprocal(*pointers, ctypes.c_int64(b.size), ctypes.c_int64(refined))
    return y


def ulps(b: np.ndarray, y: np.ndarray) -> np.ndarray:
    exact = 1.0 / b.astype(np.float64)
    return np.abs(y.astype(np.float64) - exact) / np.spacing(exact.astype(np.float32))


def divisors() -> np.ndarray:
    """Every power of two from 1 to 8e37 with the ends, the middle and random places of its numbers."""
    drawn = np.random.default_rng(0).integers(0, 1 << 23, 4096, dtype=np.uint32)
    mantissas = np.concatenate([np.arange(64), (1 << 23) - 1 - np.arange(64), (1 << 22) + np.arange(-32, 32), drawn])
    bits = (np.arange(127, 127 + 126, dtype=np.uint32)[:, None] << 23) | mantissas.astype(np.uint32)[None, :]
    b = bits.ravel().view(np.float32)
    return b[b <= 8e37]


def test_within_one_ulp_whatever_the_approximation_gives():
    b = divisors()
    assert ulps(b, quotients(b, refined=False)).max() > 0.9  # the emulated instruction is as wrong as it may be
    assert ulps(b, quotients(b, refined=True)).max() <= 0.51


def test_nan_stays_nan():
    assert np.isnan(quotients(np.array([np.nan], np.float32), refined=True)).all()
