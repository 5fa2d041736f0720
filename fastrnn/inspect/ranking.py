"""How well a unit tracks a feature.

Everything goes by ranks, so that only the order of a unit's values counts: for a feature that holds or does not the
area under the receiver's curve (AUC: how probable it is that the unit is higher at a place where it holds than at one
where it does not; 0.5 is chance, 0 is as good as 1), for one with numbers Spearman's rank correlation (0 is chance, −1
as good as 1). Ties count half.
"""

from __future__ import annotations

import numpy as np

LEVELS = 255  # 0 to 254; the one in the middle is the centre of a scale


def quantised(values: np.ndarray, centre: float, half: float | np.ndarray) -> np.ndarray:
    """Values as uint8 from 0, for centre − half, to 254, for centre + half; wrong by half / 254 at most."""
    scaled = (values - centre) * ((LEVELS // 2) / half)
    return (np.rint(scaled) + LEVELS // 2).clip(0, LEVELS - 1).astype(np.uint8)


def ranks(levels: np.ndarray) -> np.ndarray:
    """The rank (from 1, ties shared) of each of N levels 0 to 254, float32: by counting, without sorting."""
    counts = np.bincount(levels, minlength=LEVELS)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2).astype(np.float32)[levels]


def scores(tracks: np.ndarray, feature: np.ndarray) -> np.ndarray | None:
    """The AUC (of a bool feature) or Spearman's correlation of each track.

    Args:
        tracks: (U, N) levels, uint8.
        feature: (N), bool or float.

    Returns:
        (U), or None where the feature is the same everywhere.
    """
    N = len(feature)
    if not N or bool((feature == feature[0]).all()):
        return None
    if feature.dtype == bool:
        held = np.flatnonzero(feature)
        return np.array([_auc(track, held) for track in tracks], np.float32)
    _, levels = np.unique(feature, return_inverse=True)
    counts = np.bincount(levels)
    wanted = (np.cumsum(counts) - (counts - 1) / 2)[levels]
    wanted = ((wanted - wanted.mean()) / wanted.std()).astype(np.float32)
    found = np.zeros(len(tracks), np.float32)
    for u, track in enumerate(tracks):
        own = ranks(track)
        spread = own.std()
        if spread:
            found[u] = np.dot(own - own.mean(), wanted) / (N * spread)
    return found


def _auc(track: np.ndarray, held: np.ndarray) -> float:
    """By the counts of both kinds at each level."""
    yes = np.bincount(track[held], minlength=LEVELS).astype(np.float64)
    no = np.bincount(track, minlength=LEVELS) - yes
    below = np.cumsum(no) - no
    return float((yes * (below + no / 2)).sum() / (yes.sum() * no.sum()))


def strength(scores: np.ndarray, feature: np.ndarray) -> np.ndarray:
    """How far from chance, 0 to 1, whichever the direction."""
    return np.abs(2 * scores - 1) if feature.dtype == bool else np.abs(scores)
