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


def activation(x: np.ndarray, which: int) -> np.ndarray:
    y = np.empty_like(x)
    pointers = (array.ctypes.data_as(ctypes.c_void_p) for array in (x, y))
    library().lib.emulated_activation(*pointers, ctypes.c_int64(x.size), ctypes.c_int64(which))
    return y


def test_activations_however_wrong_the_instructions_may_be():
    """2^f is two ULP off, 1/x one: sigmoid stays within 7 ULP, tanh within 3."""
    points = [np.linspace(-86.9, 90, 400_001), np.linspace(-1, 1, 200_001), np.geomspace(1e-37, 1, 20_001)]
    x = np.concatenate(points).astype(np.float32)
    wide = x.astype(np.float64)
    for which, (exact, most) in enumerate([(1 / (1 + np.exp(-wide)), 7), (np.tanh(wide), 3)]):
        errors = np.abs(activation(x, which) - exact) / np.spacing(np.abs(exact).astype(np.float32))
        assert most / 2 < errors.max() <= most
    special = np.array([np.inf, -np.inf, -90, 0.0, -0.0], np.float32)
    assert activation(special, 0).tolist() == [1, 0, 0, 0.5, 0.5]
    assert activation(special, 1).tolist() == [1, -1, -1, 0, 0]
    assert np.signbit(activation(special, 1)).tolist() == [False, True, True, False, True]
    assert np.isnan(activation(np.array([np.nan], np.float32), 0)).all()
    assert np.isnan(activation(np.array([np.nan], np.float32), 1)).all()


def test_nan_stays_nan():
    assert np.isnan(quotients(np.array([np.nan], np.float32), refined=True)).all()
