"""A page of `fastrnn inspect` opens on the strongest unit that does not drift."""

from __future__ import annotations

import numpy as np

from fastrnn.apps.inspect.page import as_html
from fastrnn.apps.inspect.reading import Reading, Scale, Track, chosen
from fastrnn.inspect.features import FEATURES, YES_OR_NO

N = 3000
PLACE = np.arange(N)


def made_up(levels, **features):
    """A reading of one layer with these units and features; the other features never change."""
    levels = np.stack(levels).astype(np.uint8)
    units = len(levels)
    every = {name: np.zeros(N, bool if name in YES_OR_NO else np.float32) for name in FEATURES}
    every |= {name.replace("_", " "): values for name, values in features.items()}
    return Reading(
        text="x" * N,
        ends=PLACE,
        names=["layer 1"],
        quantities=[["c"]],
        gates=[[]],
        hidden=units,
        levels={(0, "c"): levels},
        scales={(0, "c"): Scale(0.0, np.ones(units, np.float32))},
        saturation={},
        expected=np.zeros((N, 1), np.int64),
        probabilities=np.zeros((N, 1), np.float32),
        bits=np.zeros(N, np.float32),
        features=every,
    )


QUOTED = (PLACE // 10) % 2 == 0
NOISE = np.random.default_rng(0).integers(0, 255, N)
#: Perfect within each block of the ranking, but its values say where in the text it is.
DRIFTING = 80 * (PLACE // 1000) + 60 * QUOTED
FOLLOWING = np.clip(100 * QUOTED + 0.6 * NOISE, 0, 254)


def test_the_strongest_unit_comes_first():
    weak = np.clip(20 * QUOTED + 0.6 * NOISE, 0, 254)
    reading = made_up([NOISE, weak, FOLLOWING], inside_quotes=QUOTED)
    assert reading.strongest() == Track(0, "c", 2)
    assert chosen(reading, [], 3, 5)[0] == Track(0, "c", 2)


def test_the_strongest_of_any_feature_not_of_the_first():
    first, *_, last = YES_OR_NO
    other = (PLACE // 25) % 2 == 0
    weak = np.clip(20 * QUOTED + 0.6 * NOISE, 0, 254)
    reading = made_up([weak, 200 * other], **{first.replace(" ", "_"): QUOTED, last.replace(" ", "_"): other})
    assert chosen(reading, [], 3, 5)[0] == Track(0, "c", 1)


def test_a_drifting_unit_is_not_what_a_page_opens_on():
    reading = made_up([DRIFTING, FOLLOWING], inside_quotes=QUOTED)
    assert reading.ranked("inside quotes", 2)[0][0] == Track(0, "c", 0)  # so that it has to be passed over
    assert reading.strongest() == Track(0, "c", 1)
    assert '"layer":0,"quantity":"c","unit":1' in as_html(reading).split('"tracks":')[1][:60]


def test_a_feature_that_hardly_ever_holds_is_passed_over():
    rare = PLACE == 1500
    reading = made_up([200 * rare, FOLLOWING], inside_quotes=QUOTED, in_a_comment=rare)
    assert reading.strongest() == Track(0, "c", 1)


def test_where_all_units_drift_the_strongest_of_them():
    reading = made_up([DRIFTING, 254 * PLACE / N], inside_quotes=QUOTED)
    assert reading.strongest() == Track(0, "c", 0)


def test_wanted_units_come_first_and_nothing_is_needed():
    reading = made_up([NOISE, FOLLOWING], inside_quotes=QUOTED)
    assert chosen(reading, [Track(0, "c", 0)], 2, 5)[0] == Track(0, "c", 0)
    assert made_up([NOISE, FOLLOWING]).strongest() is None
    assert len(chosen(made_up([NOISE, FOLLOWING]), [], 2, 5)) == 2
