"""Looking inside recurrent networks: their states, gates and gradients. ``fastrnn inspect`` and ``fastrnn gradflow`` as
functions.

.. code-block:: python

    from fastrnn import inspect

    reading = inspect.read("run/best.pt", "def f(x):  # a comment")
    inspect.follow(lstm, x)[0].gates["f"]  # (T, B, H)
    inspect.gradient_flow(lstm, x).layers[0].norms("c")  # ‖∂L/∂c_t‖ by lag
    inspect.jacobian(lstm, x[0], (h, c))
    inspect.spectrum(lstm)[0].radius
"""

from __future__ import annotations

from fastrnn.inspect.features import FEATURES, features_of
from fastrnn.inspect.figure import save as save_figure
from fastrnn.inspect.flow import GradientFlow, LayerFlow, gradient_flow
from fastrnn.inspect.gradflow import Run, compare, of_checkpoint
from fastrnn.inspect.page import as_html
from fastrnn.inspect.reading import Reading, Track, read
from fastrnn.inspect.states import LayerStates, follow
from fastrnn.inspect.step import Spectrum, jacobian, spectrum

__all__ = [
    "FEATURES",
    "GradientFlow",
    "LayerFlow",
    "LayerStates",
    "Reading",
    "Run",
    "Spectrum",
    "Track",
    "as_html",
    "compare",
    "features_of",
    "follow",
    "gradient_flow",
    "jacobian",
    "of_checkpoint",
    "read",
    "save_figure",
    "spectrum",
]
