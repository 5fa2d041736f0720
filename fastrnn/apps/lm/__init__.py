"""Language models of bytes or characters: train, resume, sample; ``fastrnn train`` and ``fastrnn sample`` as functions.

.. code-block:: python

    from fastrnn.apps import lm

    result = lm.train(lm.Options(file="text.txt", hidden=512, steps=5000, out="run"), report=print)
    lm.resume("run", steps=10000)
    model = lm.load("run/best.pt")
    print("".join(lm.sample(model, "def ", 500, temperature=0.7)))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastrnn.apps.lazy import imported_at_first_use

if TYPE_CHECKING:
    from fastrnn.apps.lm.errors import CheckpointError, TrainingError
    from fastrnn.apps.lm.events import Event, Logged, Result, Sampled, Saved, Started
    from fastrnn.apps.lm.model import LanguageModel
    from fastrnn.apps.lm.options import Options
    from fastrnn.apps.lm.runs import resume, train
    from fastrnn.apps.lm.sampling import load, sample
else:
    __getattr__ = imported_at_first_use(
        __name__,
        dict.fromkeys(("CheckpointError", "TrainingError"), "errors")
        | dict.fromkeys(("Event", "Logged", "Result", "Sampled", "Saved", "Started"), "events")
        | {"LanguageModel": "model", "Options": "options", "resume": "runs", "train": "runs"}
        | {"load": "sampling", "sample": "sampling"},
    )

__all__ = [
    "CheckpointError",
    "Event",
    "LanguageModel",
    "Logged",
    "Options",
    "Result",
    "Sampled",
    "Saved",
    "Started",
    "TrainingError",
    "load",
    "resume",
    "sample",
    "train",
]
