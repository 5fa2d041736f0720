"""Reading of a text by a language model: every unit at every place, predictions, and the units that track features."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from fastrnn.apps.lm.model import LanguageModel
from fastrnn.apps.lm.sampling import load
from fastrnn.inspect.features import FEATURES, features_of
from fastrnn.inspect.ranking import drift, quantised, scores, strength
from fastrnn.inspect.states import follow

#: Saturation as in Karpathy, Johnson & Fei-Fei 2015: a gate is left-saturated below 0.1, right-saturated above 0.9.
LEFT, RIGHT = 0.1, 0.9
#: Tracks that a page does not open on: those with a larger share of their variance between tenths of the text, and
#: those that follow a feature that holds (or does not) at a smaller share of the places, where a perfect score may be
#: chance.
DRIFTS, RARE = 0.5, 0.01


@dataclass(frozen=True, order=True)
class Track:
    """State or gate of one unit, as a curve over the text.

    Layer and unit count from 0 here, and from 1 in displayed text.
    """

    layer: int
    quantity: str
    unit: int

    def __str__(self) -> str:
        return f"{self.layer + 1}:{self.quantity}:{self.unit + 1}"


@dataclass(frozen=True, eq=False)
class Scale:
    """Scale of one quantity of one layer: levels 0 to 254 represent centre − half to centre + half.

    Attributes:
        centre: 0 for states, 0.5 for gates.
        half: (H), for each unit: for a state its largest modulus in the text, for a gate 0.5.
    """

    centre: float
    half: np.ndarray


@dataclass(eq=False)
class Reading:
    """States, gates and predictions of a model on a text of T units (bytes or characters).

    Attributes:
        text: the text as displayed; invalid UTF-8 is U+FFFD.
        ends: (characters) the unit at which each character is complete.
        names: the names of the layers.
        quantities: by layer, the names of its states, then of its gates.
        gates: by layer, those of the quantities that are gates.
        hidden: H, the units of a layer.
        levels: by layer and quantity, (H, T) uint8, to be read with its `Scale`.
        saturation: by layer and gate, (2, H): the share of places at which it is left- and right-saturated.
        expected: (T, K) ids of the most likely next units, with their probabilities (T, K).
        bits: (T) the cost of each unit, −log2 of its predicted probability; the first is NaN.
        features: by name, (T).
    """

    text: str
    ends: np.ndarray
    names: list[str]
    quantities: list[list[str]]
    gates: list[list[str]]
    hidden: int
    levels: dict[tuple[int, str], np.ndarray]
    scales: dict[tuple[int, str], Scale]
    saturation: dict[tuple[int, str], np.ndarray]
    expected: np.ndarray
    probabilities: np.ndarray
    bits: np.ndarray
    features: dict[str, np.ndarray]
    _scores: dict[tuple[str, int, str], np.ndarray | None] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        return len(self.bits)

    def tracks(self) -> int:
        """Return the number of tracks of the model."""
        return sum(len(names) for names in self.quantities) * self.hidden

    def ranked(self, feature: str, count: int) -> list[tuple[Track, float]]:
        """Return the tracks that follow a feature best, with their AUC or correlation; at most one of each unit.

        Empty if the feature is constant.
        """
        best: dict[tuple[int, int], tuple[float, Track, float]] = {}
        for layer, quantity in self.levels:
            own = self._scored(feature, layer, quantity)
            if own is None:
                return []
            strong = strength(own, self.features[feature])
            for unit in np.argsort(-strong, kind="stable")[:count].tolist():
                entry = (float(strong[unit]), Track(layer, quantity, unit), float(own[unit]))
                if (layer, unit) not in best or best[layer, unit][0] < entry[0]:
                    best[layer, unit] = entry
        order = sorted(best.values(), key=lambda entry: (-entry[0], entry[1]))
        return [(track, score) for _, track, score in order[:count]]

    def strongest(self, count: int = 5) -> Track | None:
        """Return the track that follows any feature best, among the ``count`` best of each; None if no feature varies.

        Tracks that drift and features that rarely change count only if there are no others.
        """
        candidates: list[tuple[bool, float, Track]] = []
        for feature in FEATURES:
            values = self.features[feature]
            rare = values.dtype == bool and not RARE <= values.mean() <= 1 - RARE
            for track, score in self.ranked(feature, count):
                levels = self.levels[track.layer, track.quantity][track.unit : track.unit + 1]
                usable = not rare and bool(drift(levels)[0] <= DRIFTS)
                candidates.append((usable, float(strength(np.array(score), values)), track))
        return max(candidates, key=lambda entry: entry[:2])[2] if candidates else None

    def _scored(self, feature: str, layer: int, quantity: str) -> np.ndarray | None:
        key = (feature, layer, quantity)
        if key not in self._scores:
            self._scores[key] = scores(self.levels[layer, quantity], self.features[feature])
        return self._scores[key]


def read(
    model: LanguageModel | str | os.PathLike[str],
    text: str | bytes,
    *,
    top: int = 3,
    syntax: str = "auto",
) -> Reading:
    """Run a language model over a text once, from zero states.

    Args:
        model: a model from `fastrnn.apps.lm.load`, or a checkpoint for it.
        text: at least one unit; bytes are decoded as UTF-8 if the model's units are characters.
        top: the number of most likely next units to record.
        syntax: as for `fastrnn.inspect.features_of`.

    Raises:
        ValueError: the text is empty or has characters outside the vocabulary; ``top`` or ``syntax`` is invalid.
        CheckpointError: see `fastrnn.apps.lm.load`.
    """
    if not isinstance(model, LanguageModel):
        model = load(model)
    if top < 1:
        raise ValueError(f"top: expected at least 1, got {top}")
    ids = ids_of(model, text)
    model.eval()
    shown, ends = _shown(model, ids)
    with torch.no_grad():
        x = F.embedding(torch.from_numpy(ids).unsqueeze(1), model.rows())  # (T, 1, E)
        layers = follow(model.recurrent, x)
        likely, probabilities, bits = _expectations(model, layers[-1].states["h"].squeeze(1), ids, top)
    reading = Reading(
        text=shown,
        ends=ends,
        names=[layer.name for layer in layers],
        quantities=[[*layer.states, *layer.gates] for layer in layers],
        gates=[list(layer.gates) for layer in layers],
        hidden=model.options.hidden,
        levels={},
        scales={},
        saturation={},
        expected=likely,
        probabilities=probabilities,
        bits=bits,
        features=_of_units(shown, ends, len(ids), syntax),
    )
    for number, layer in enumerate(layers):
        for name, values in {**layer.states, **layer.gates}.items():
            _add(reading, number, name, values.squeeze(1).float().numpy(), name in layer.gates)
    return reading


def ids_of(model: LanguageModel, text: str | bytes) -> np.ndarray:
    if not text:
        raise ValueError("text: expected at least one character, got none")
    if isinstance(text, str):
        return model.vocabulary.encode(text, "text")
    if model.vocabulary.unit == "byte":
        return np.frombuffer(text, np.uint8).astype(np.int64)
    try:
        return model.vocabulary.encode(text.decode(), "text")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"text: expected UTF-8, got {text[error.start : error.start + 1]!r} at byte {error.start}"
        ) from None


def _shown(model: LanguageModel, ids: np.ndarray) -> tuple[str, np.ndarray]:
    """Return the characters, and the unit at which each is complete; several may be complete at one."""
    decoder, pieces, ends = model.vocabulary.decoder(), [], []
    for k, unit in enumerate(ids.tolist()):
        piece = decoder.feed(unit)
        pieces.append(piece)
        ends += [k] * len(piece)
    return "".join(pieces), np.array(ends, np.int64)


def _of_units(shown: str, ends: np.ndarray, steps: int, syntax: str) -> dict[str, np.ndarray]:
    """Map features of characters to units: a unit inside a character has those of the previous character."""
    features = features_of(shown, syntax)
    place = np.searchsorted(ends, np.arange(steps), side="right") - 1
    return {name: np.where(place < 0, features[name].dtype.type(0), _taken(features[name], place)) for name in FEATURES}


def _taken(values: np.ndarray, place: np.ndarray) -> np.ndarray:
    return values[np.maximum(place, 0)] if len(values) else np.zeros(len(place), values.dtype)


def _expectations(
    model: LanguageModel, hidden: torch.Tensor, ids: np.ndarray, top: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the most likely units after each place, their probabilities, and the cost of each unit in bits.

    Computed in pieces, because the logits (T, V) of a long text and a large vocabulary may not fit in memory.
    """
    T, V = len(ids), model.vocabulary.size
    count = min(top, V)
    likely, shares = np.zeros((T, count), np.int64), np.zeros((T, count), np.float32)
    bits = np.full(T, np.nan, np.float32)
    piece = max(1, 2**24 // V)
    for begin in range(0, T, piece):
        logarithms = F.log_softmax(model.logits(hidden[begin : begin + piece]).float(), -1)
        best = logarithms.topk(count, -1)
        end = begin + len(logarithms)
        likely[begin:end], shares[begin:end] = best.indices.numpy(), best.values.exp().numpy()
        following = torch.from_numpy(ids[begin + 1 : end + 1])
        cost = -logarithms[: len(following)].gather(-1, following.unsqueeze(-1)).squeeze(-1) / np.log(2)
        bits[begin + 1 : begin + 1 + len(following)] = cost.numpy()
    return likely, shares, bits


def _add(reading: Reading, layer: int, name: str, values: np.ndarray, is_gate: bool) -> None:
    """Store one quantity (T, H): levels, scale, saturation."""
    largest = np.abs(values).max(0)
    if not np.isfinite(largest).all():
        raise ValueError("model: expected finite states, got infinity or NaN; its training has diverged")
    largest[largest == 0] = 1
    scale = Scale(0.5, np.full(len(largest), 0.5, np.float32)) if is_gate else Scale(0.0, largest)
    reading.scales[layer, name] = scale
    reading.levels[layer, name] = quantised(np.ascontiguousarray(values.T), scale.centre, scale.half[:, None])
    if is_gate:
        reading.saturation[layer, name] = np.stack([(values < LEFT).mean(0), (values > RIGHT).mean(0)])


def chosen(reading: Reading, wanted: Sequence[Track], count: int, ranks: int) -> list[Track]:
    """Return the tracks for a page with room for ``count``.

    In this order: the requested ones; the strongest, which the page opens on; the best of each feature in turn, then
    the second best, …; and the other quantities of these units.
    """
    strongest = reading.strongest(ranks)
    tracks = dict.fromkeys([*wanted, *([strongest] if strongest else [])])
    lists = [[track for track, _ in reading.ranked(name, ranks)] for name in FEATURES]
    for track in _interleaved(lists):
        tracks.setdefault(track)
    for track in list(tracks):
        for quantity in reading.quantities[track.layer]:
            tracks.setdefault(Track(track.layer, quantity, track.unit))
    for layer, names in enumerate(reading.quantities):
        for unit in range(reading.hidden):
            if len(tracks) >= count:
                break
            for quantity in names:
                tracks.setdefault(Track(layer, quantity, unit))
    return list(tracks)[: max(count, len(wanted))]


def _interleaved(lists: list[list[Track]]) -> Iterator[Track]:
    for place in range(max(map(len, lists), default=0)):
        for one in lists:
            if place < len(one):
                yield one[place]
