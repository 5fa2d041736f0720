"""Pages and figures about recurrent networks: ``fastrnn inspect`` and ``fastrnn gradflow`` as functions.

.. code-block:: python

    from fastrnn.apps import inspect as pages

    reading = pages.read("run/best.pt", "def f(x):  # a comment")
    html = pages.as_html(reading)
    pages.save_figure([pages.of_checkpoint("run/best.pt", text)], ["gradflow.svg"])

The numbers that they show come from `fastrnn.inspect`.
"""

from __future__ import annotations

from fastrnn.apps.inspect.checkpoint import of_checkpoint
from fastrnn.apps.inspect.figure import save as save_figure
from fastrnn.apps.inspect.page import as_html
from fastrnn.apps.inspect.reading import Reading, Track, read

__all__ = ["Reading", "Track", "as_html", "of_checkpoint", "read", "save_figure"]
