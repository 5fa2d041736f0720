"""A language model reads a text: every unit at every place, what it expects next, and which units track what."""

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
#: What a page does not open on: a track with a larger share of its variance between tenths of the text, and one that
#: follows what holds (or does not) at a smaller share of the places, where a perfect score may be chance.
DRIFTS, RARE = 0.5, 0.01


@dataclass(frozen=True, order=True)
class Track:
    """State or gate of one unit, as a curve over the text.

    Layer and unit count from 0 here, and from 1 in what is shown.
    """

    layer: int
    quantity: str
    unit: int

    def __str__(self) -> str:
        return f"{self.layer + 1}:{self.quantity}:{self.unit + 1}"


@dataclass(frozen=True, eq=False)
class Scale:
    """How the levels 0 to 254 of one quantity of one layer are to be read: as centre − half to centre + half.

    Attributes:
        centre: 0 for states, 0.5 for gates.
        half: (H), for each unit: of a state the largest modulus that it has in the text, of a gate 0.5.
    """

    centre: float
    half: np.ndarray


@dataclass(eq=False)
class Reading:
    """States, gates and predictions of a model on a text of T units (bytes or characters).

    Attributes:
        text: as people see it; what is no text (UTF-8) is U+FFFD.
        ends: (characters) at which unit each character is complete.
        names: of the layers.
        quantities: the names of each layer's states, then gates, by layer.
        gates: which of these are gates, by layer.
        hidden: H, the units of a layer.
        levels: (H, T) uint8 by layer and quantity, with its `Scale`.
        saturation: by layer and gate, (2, H): the share of places at which it is left- and right-saturated.
        expected: (T, K) ids, the likeliest units to come next, and their probabilities (T, K).
        bits: (T) what each unit cost, −log2 of the probability that it was given; the first is NaN.
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
        """Return the tracks that follow a feature best, with their AUC or correlation; one of each unit.

        The list is empty if the feature is the same everywhere.
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
        """Return the track that follows any feature best, of the ``count`` best of each, or None.

        Tracks that drift and features that hardly ever change count only if there are no others. None: no feature
        changes in the text.
        """
        found: list[tuple[bool, float, Track]] = []
        for feature in FEATURES:
            values = self.features[feature]
            rare = values.dtype == bool and not RARE <= values.mean() <= 1 - RARE
            for track, score in self.ranked(feature, count):
                levels = self.levels[track.layer, track.quantity][track.unit : track.unit + 1]
                usable = not rare and bool(drift(levels)[0] <= DRIFTS)
                found.append((usable, float(strength(np.array(score), values)), track))
        return max(found, key=lambda entry: entry[:2])[2] if found else None

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
    """Run a language model over a text once, from states of zeros.

    Args:
        model: of `fastrnn.apps.lm.load`, or a checkpoint for it.
        text: one unit at least; bytes are decoded as UTF-8 where the model's units are characters.
        top: how many of the likeliest next units to keep.
        syntax: as for `fastrnn.inspect.features_of`.

    Raises:
        ValueError: the text is empty or has characters that the vocabulary has not; ``top`` or ``syntax``.
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
        raise ValueError("text: expected one character at least, got none")
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
    """The characters, and at which unit each is complete; several may be at one."""
    decoder, pieces, ends = model.vocabulary.decoder(), [], []
    for k, unit in enumerate(ids.tolist()):
        piece = decoder.feed(unit)
        pieces.append(piece)
        ends += [k] * len(piece)
    return "".join(pieces), np.array(ends, np.int64)


def _of_units(shown: str, ends: np.ndarray, steps: int, syntax: str) -> dict[str, np.ndarray]:
    """Features of the characters, as those of the units: a unit inside a character has those of the one before it."""
    found = features_of(shown, syntax)
    place = np.searchsorted(ends, np.arange(steps), side="right") - 1
    return {name: np.where(place < 0, found[name].dtype.type(0), _taken(found[name], place)) for name in FEATURES}


def _taken(values: np.ndarray, place: np.ndarray) -> np.ndarray:
    return values[np.maximum(place, 0)] if len(values) else np.zeros(len(place), values.dtype)


def _expectations(
    model: LanguageModel, hidden: torch.Tensor, ids: np.ndarray, top: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The likeliest units after each place, their probabilities, and the bits that each unit cost; in pieces, as the
    logits (T, V) of a long text and a large vocabulary may not fit."""
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
    """Takes in one quantity (T, H): levels, scale, saturation."""
    largest = np.abs(values).max(0)
    if not np.isfinite(largest).all():
        raise ValueError("model: expected finite states, got some that are not; its training has diverged")
    largest[largest == 0] = 1
    scale = Scale(0.5, np.full(len(largest), 0.5, np.float32)) if is_gate else Scale(0.0, largest)
    reading.scales[layer, name] = scale
    reading.levels[layer, name] = quantised(np.ascontiguousarray(values.T), scale.centre, scale.half[:, None])
    if is_gate:
        reading.saturation[layer, name] = np.stack([(values < LEFT).mean(0), (values > RIGHT).mean(0)])


def chosen(reading: Reading, wanted: Sequence[Track], count: int, ranks: int) -> list[Track]:
    """The tracks for a page that has room for ``count``: those wanted; then the strongest, which the page opens on;
    then the best of each feature in turns, the second best, …; then the other quantities of these units.
    """
    strongest = reading.strongest(ranks)
    found = dict.fromkeys([*wanted, *([strongest] if strongest else [])])
    lists = [[track for track, _ in reading.ranked(name, ranks)] for name in FEATURES]
    for track in _in_turns(lists):
        found.setdefault(track)
    for track in list(found):
        for quantity in reading.quantities[track.layer]:
            found.setdefault(Track(track.layer, quantity, track.unit))
    for layer, names in enumerate(reading.quantities):
        for unit in range(reading.hidden):
            if len(found) >= count:
                break
            for quantity in names:
                found.setdefault(Track(layer, quantity, unit))
    return list(found)[: max(count, len(wanted))]


def _in_turns(lists: list[list[Track]]) -> Iterator[Track]:
    for place in range(max(map(len, lists), default=0)):
        for one in lists:
            if place < len(one):
                yield one[place]
