"""Pages and figures about recurrent networks: ``fastrnn inspect`` and ``fastrnn gradflow`` as functions.

.. code-block:: python

    from fastrnn.apps import inspect as pages

    reading = pages.read("run/best.pt", "def f(x):  # a comment")
    html = pages.as_html(reading)
    pages.save_figure([pages.of_checkpoint("run/best.pt", text)], ["gradflow.svg"])

The data that they show come from `fastrnn.inspect`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastrnn.apps.lazy import imported_at_first_use

if TYPE_CHECKING:
    from fastrnn.apps.inspect.checkpoint import of_checkpoint
    from fastrnn.apps.inspect.figure import save as save_figure
    from fastrnn.apps.inspect.page import as_html
    from fastrnn.apps.inspect.reading import Reading, Track, read
else:
    __getattr__ = imported_at_first_use(
        __name__,
        dict.fromkeys(("Reading", "Track", "read"), "reading")
        | {"as_html": "page", "of_checkpoint": "checkpoint", "save_figure": "figure.save"},
    )

__all__ = ["Reading", "Track", "as_html", "of_checkpoint", "read", "save_figure"]
