"""Scores of how well a unit tracks a feature.

All scores depend on ranks, so that only the order of a unit's values counts: for a boolean feature the area under the
ROC curve (AUC, the probability that the unit is higher at a place where the feature holds than at one where it does
not; 0.5 is chance, 0 as good as 1), for a numeric one Spearman's rank correlation (0 is chance, −1 as good as 1). Ties
count half. Only places in the same block of 1,000 are compared: a cell state may drift over a whole text, and would
then correlate with any feature that is more frequent at its beginning or end.
"""

from __future__ import annotations

import numpy as np

#: Number of consecutive places that are compared with each other.
BLOCK = 1000
LEVELS = 255  # 0 to 254; 127 is the centre of a scale


def quantised(values: np.ndarray, centre: float, half: float | np.ndarray) -> np.ndarray:
    """Return values as uint8, from 0 for centre − half to 254 for centre + half; error at most half / 254."""
    scaled = (values - centre) * ((LEVELS // 2) / half)
    return (np.rint(scaled) + LEVELS // 2).clip(0, LEVELS - 1).astype(np.uint8)


def ranks(levels: np.ndarray, blocks: np.ndarray, size: int) -> np.ndarray:
    """Return mid-ranks within each block, divided by the block's length and centred at 0: (N) float64.

    They are computed by counting, without sorting.

    Args:
        levels: (N) integers from 0 to size − 1.
        blocks: (N) the block number of each place.
    """
    key = blocks * size + levels
    counts = np.bincount(key, minlength=size * (int(blocks[-1]) + 1)).reshape(-1, size)
    number = counts.sum(1, keepdims=True)
    middle = np.cumsum(counts, 1) - counts / 2
    return (middle / number - 0.5).ravel()[key]


def scores(tracks: np.ndarray, feature: np.ndarray) -> np.ndarray | None:
    """Return the AUC (for a bool feature) or rank correlation of each track.

    Args:
        tracks: (U, N) levels, uint8.
        feature: (N), bool or float.

    Returns:
        (U), or None if the feature is constant within every block.
    """
    N = len(feature)
    if not N:
        return None
    blocks = np.arange(N) // BLOCK
    if feature.dtype == bool:
        held = np.flatnonzero(feature)
        pairs = _pairs(feature, blocks)
        return np.array([_auc(track, held, blocks) / pairs for track in tracks], np.float32) if pairs else None
    values, levels = np.unique(feature, return_inverse=True)
    wanted = ranks(levels, blocks, len(values))
    if not wanted.any():
        return None
    wanted /= np.linalg.norm(wanted)
    correlations = np.zeros(len(tracks), np.float32)
    for u, track in enumerate(tracks):
        own = ranks(track, blocks, LEVELS)
        length = np.linalg.norm(own)
        if length:
            correlations[u] = np.dot(own, wanted) / length
    return correlations


def _pairs(feature: np.ndarray, blocks: np.ndarray) -> float:
    """Count the pairs, within a block, of a place where the feature holds and one where it does not."""
    yes, every = np.bincount(blocks[feature], minlength=int(blocks[-1]) + 1), np.bincount(blocks)
    return float((yes * (every - yes)).sum())


def _auc(track: np.ndarray, held: np.ndarray, blocks: np.ndarray) -> float:
    """Count the pairs in which the track is higher where the feature holds, from the counts of both at each level."""
    key = blocks * LEVELS + track
    size = LEVELS * (int(blocks[-1]) + 1)
    yes = np.bincount(key[held], minlength=size).reshape(-1, LEVELS)
    no = np.bincount(key, minlength=size).reshape(-1, LEVELS) - yes
    below = np.cumsum(no, 1) - no
    return float((yes * (below + no / 2)).sum())


def strength(scores: np.ndarray, feature: np.ndarray) -> np.ndarray:
    """Return the distance from chance, 0 to 1, irrespective of sign."""
    return np.abs(2 * scores - 1) if feature.dtype == bool else np.abs(scores)


def drift(tracks: np.ndarray) -> np.ndarray:
    """Return the share of each track's variance between tenths of the text; 0 for a constant track.

    Near 1, the track drifts over the text instead of following its content.

    Args:
        tracks: (U, N) levels.

    Returns:
        (U)
    """
    tenths = np.array_split(tracks.astype(np.float64), min(10, tracks.shape[1]), axis=1)
    sizes = np.array([tenth.shape[1] for tenth in tenths])
    means = np.stack([tenth.mean(1) for tenth in tenths], 1)
    whole = tracks.mean(1, keepdims=True)
    between = ((means - whole) ** 2 * sizes).sum(1) / sizes.sum()
    total = tracks.var(1)
    return np.divide(between, total, out=np.zeros(len(tracks)), where=total > 0)
