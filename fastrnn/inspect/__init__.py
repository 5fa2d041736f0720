"""Analyses of recurrent networks: states, gates, gradients, spectra, and the text features that units track.

.. code-block:: python

    from fastrnn import inspect

    inspect.follow(lstm, x)[0].gates["f"]  # (T, B, H)
    inspect.gradient_flow(lstm, x).layers[0].norms("c")  # ‖∂L/∂c_t‖ by lag
    inspect.jacobian(lstm, x[0], (h, c))
    inspect.spectrum(lstm)[0].radius

`fastrnn.apps.inspect` makes pages and figures from the results.
"""

from __future__ import annotations

from fastrnn.inspect.features import FEATURES, features_of
from fastrnn.inspect.flow import GradientFlow, LayerFlow, gradient_flow
from fastrnn.inspect.gradflow import Run, compare
from fastrnn.inspect.states import LayerStates, follow
from fastrnn.inspect.step import Spectrum, jacobian, spectrum

__all__ = [
    "FEATURES",
    "GradientFlow",
    "LayerFlow",
    "LayerStates",
    "Run",
    "Spectrum",
    "compare",
    "features_of",
    "follow",
    "gradient_flow",
    "jacobian",
    "spectrum",
]
