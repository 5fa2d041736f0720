"""The language model: embedding, recurrent layers, output layer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastrnn
from fastrnn import _torch
from fastrnn.apps.lm.options import CELLS, MAX_UNEMBEDDED, Options
from fastrnn.apps.lm.vocabulary import Vocabulary
from fastrnn.training import weight_drop

States = tuple[Tensor, ...]
_CLASSES = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "RNN", "rnn_relu": "RNN"}
_FORMATS = {"float32": torch.float32, "bfloat16": torch.float32, "float64": torch.float64}


class LanguageModel(nn.Module):
    """Model that predicts the next unit of a text.

    From one seed both engines start with the same weights, under the same names.

    Letters: T time steps, B batch rows, V vocabulary, E embedding, H hidden units, L layers.

    Args:
        options: the options of the run, which include those of the model.
        vocabulary: its units.
        engine: overrides the engine of the options.

    Attributes:
        options, vocabulary: as given.
        recurrent: the layers, a `fastrnn.LSTM`, GRU, RNN or a network of the gallery, or of torch.nn.

    Raises:
        ValueError: the vocabulary is too large for a model without embedding.
    """

    def __init__(self, options: Options, vocabulary: Vocabulary, engine: str | None = None) -> None:
        super().__init__()
        self.options, self.vocabulary = options, vocabulary
        self.engine = engine or options.engine
        V, E, H = vocabulary.size, options.embedding, options.hidden
        if E == 0 and V > MAX_UNEMBEDDED:
            raise ValueError(f"embedding: expected more than 0 with a vocabulary over {MAX_UNEMBEDDED}, got 0 with {V}")
        self.embedding = nn.Embedding(V, E) if E else None
        self.recurrent = self._layers(E or V)
        self.projection = nn.Linear(H, E, bias=False) if options.tied and E != H else None
        self.head = nn.Linear(E if options.tied else H, V)
        if options.tied:
            assert self.embedding is not None
            nn.init.uniform_(self.embedding.weight, -0.1, 0.1)  # variance 1 would be too large for an output layer
            self.head.weight = self.embedding.weight
        if not E:
            self.register_buffer("identity", torch.eye(V), persistent=False)
        self.to(_FORMATS[options.dtype])
        if options.dropout_recurrent:
            weight_drop(self.recurrent, options.dropout_recurrent)

    def _layers(self, width: int) -> nn.Module:
        options = self.options
        sizes: dict[str, Any] = {"num_layers": options.layers, "dropout": options.dropout}
        if options.cell not in CELLS:
            from fastrnn.gallery import CELLS as GALLERY

            return GALLERY[options.cell](width, options.hidden, **sizes)
        if options.cell.startswith("rnn"):
            sizes["nonlinearity"] = options.cell.removeprefix("rnn_")
        namespace: Any = fastrnn if self.engine == "fastrnn" else _torch
        return getattr(namespace, _CLASSES[options.cell])(width, options.hidden, **sizes)

    def rows(self) -> Tensor:
        """Return the input row of each id: the embedding (V, E), or one-hot rows (V, V)."""
        return self.identity if self.embedding is None else self.embedding.weight  # type: ignore[return-value]

    def forward(self, ids: Tensor, states: States | None = None) -> tuple[Tensor, States]:
        """Return logits (T, B, V) for the unit after each of ids (T, B), and the final states, (L, B, H) each.

        Args:
            states: final states of the previous chunk, None for zeros.
        """
        hx = states[0] if states is not None and len(states) == 1 else states
        dropped = self.training and self.options.dropout_embedding > 0
        if isinstance(self.recurrent, (fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN)) and not dropped:
            hidden, last = self.recurrent(ids, hx, embedding=self.rows())
        else:
            x = F.dropout(F.embedding(ids, self.rows()), self.options.dropout_embedding, self.training)
            by_reference = self.engine == "torch" and not isinstance(self.recurrent, _torch.RNNBase)
            hidden, last = self.recurrent(x, hx, **({"backend": "reference"} if by_reference else {}))
        hidden = F.dropout(hidden, self.options.dropout_output, self.training)
        return self.logits(hidden), last if isinstance(last, tuple) else (last,)

    def logits(self, hidden: Tensor) -> Tensor:
        """Map outputs (…, H) of the last layer to logits (…, V)."""
        return self.head(hidden if self.projection is None else self.projection(hidden))

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross entropy in nats per unit, computed in float32 or float64."""
        logits = logits.flatten(0, 1)
        return F.cross_entropy(logits if logits.dtype is torch.float64 else logits.float(), targets.flatten())


def autocast(options: Options, device: torch.device) -> torch.autocast:
    """Return the autocast context in which a model computes."""
    return torch.autocast(device.type, torch.bfloat16, enabled=options.dtype == "bfloat16")
