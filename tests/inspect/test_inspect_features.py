"""The lexer's features and the ranking of units."""

from __future__ import annotations

import numpy as np
import pytest

from fastrnn.inspect.features import FEATURES, YES_OR_NO, features_of, guessed
from fastrnn.inspect.ranking import drift, quantised, ranks, scores, strength


def marks(text, name, syntax):
    """The places where a feature holds, as a picture."""
    return "".join("^" if held else "." for held in features_of(text, syntax)[name])


@pytest.mark.parametrize(
    ("syntax", "text", "expected"),
    [
        ("python", "a = 'b\\'c' + \"d\"", "....^^^^^....^^."),
        ("python", "'''a'b\n''' + x", "^^^^^^^^^....."),
        ("python", "x = 'ab\ny = 1", "....^^^......"),
        ("python", "# it's\nx", "........"),
        ("c", 's = "a//b"; // "c"', "....^^^^^........."),
        ("text", "it's “so” and \"so", ".....^^^......^^^"),
        ("text", '"a\nb" c', "^^^^..."),
        ("text", '"a\n\nb" c', "^^...^^^"),
    ],
)
def test_inside_quotes(syntax, text, expected):
    assert marks(text, "inside quotes", syntax) == expected


@pytest.mark.parametrize(
    ("syntax", "text", "expected"),
    [
        ("python", "x # '\ny", "..^^^.."),
        ("python", "'#' # a", "....^^^"),
        ("c", "a; // b\nc /* d\n*/ e", "...^^^^...^^^^^^..."),
        ("text", "# no", "...."),
    ],
)
def test_in_a_comment(syntax, text, expected):
    assert marks(text, "in a comment", syntax) == expected


def test_numbers_of_a_line():
    text = "a(\n  b1[2.5], '(')\n\tc"
    found = features_of(text, "python")
    assert found["position in the line"].tolist() == [1, 2, *range(16), 0, 1, 2]
    assert found["bracket depth"].tolist() == [0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]
    assert found["indentation"].tolist() == [0, 0, 0, 1, 2] + [2] * 13 + [0, 8, 8]
    assert found["length of the word"].tolist()[4:8] == [0, 1, 2, 0]
    assert marks(text, "number", "python") == "......^.^^^.........."
    assert marks(text, "start of the line", "python") == "..^^^.............^^."
    assert marks("ab_1 é", "inside a word", "text") == "^^^^.^"


def test_every_feature_is_there_for_any_text():
    for text in ("", "x", "\n\n", "'", '"""', "/*", "((((", "é\t�"):
        for syntax in ("auto", "python", "c", "text"):
            found = features_of(text, syntax)
            assert tuple(found) == (*YES_OR_NO, *FEATURES[len(YES_OR_NO) :])
            assert all(len(values) == len(text) for values in found.values())
            assert all((found[name].dtype == bool) == (name in YES_OR_NO) for name in found)


def test_the_syntax_is_guessed():
    assert guessed("int main() {\n  return 0;\n}\n") == "c"
    assert guessed("import os\n\ndef f(x):\n    return x\n") == "python"
    assert guessed("It was the best of times,\nit was the worst of times.\n") == "text"
    with pytest.raises(ValueError, match="syntax: expected one of auto, python, c, text, got 'perl'"):
        features_of("", "perl")


def test_levels_are_near_the_values():
    values = np.random.default_rng(0).uniform(-3, 3, 1000)
    levels = quantised(values, 0.0, 3.0)
    assert np.abs((levels.astype(float) - 127) / 127 * 3 - values).max() <= 3 / 254 * (1 + 1e-9)
    assert quantised(np.array([-3, 0, 3, 5.0]), 0.0, 3.0).tolist() == [0, 127, 254, 254]
    assert quantised(np.array([0, 0.5, 1]), 0.5, 0.5).tolist() == [0, 127, 254]


def test_scores_against_their_definitions():
    random = np.random.default_rng(1)
    tracks = random.integers(0, 40, (4, 300)).astype(np.uint8)
    held = random.random(300) < 0.2 + 0.01 * tracks[0]
    found = scores(tracks, held)
    for track, score in zip(tracks.astype(float), found, strict=True):
        differences = np.sign(track[held][:, None] - track[~held][None, :])
        assert score == pytest.approx((1 + differences.mean()) / 2, abs=1e-6)
    numbers = (tracks[1] // 4 + random.integers(0, 5, 300)).astype(np.float32)
    found = scores(tracks, numbers)

    def by_sorting(values):
        return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])

    for track, score in zip(tracks, found, strict=True):
        assert score == pytest.approx(np.corrcoef(by_sorting(track), by_sorting(numbers))[0, 1], abs=1e-5)
        np.testing.assert_allclose(ranks(track, np.zeros(300, int), 255), by_sorting(track) / 300 - 301 / 600)
    assert found[1] == max(found) > 0.9


def test_a_unit_that_only_drifts_tracks_nothing():
    random = np.random.default_rng(2)
    place = np.arange(5000)
    held = random.random(5000) < np.where(place < 2000, 0.8, 0.1)  # far more of it at first
    drifts, follows = (254 * place / 5000).astype(np.uint8), (100 + 50 * held + place // 100).astype(np.uint8)
    noise = random.integers(0, 255, 5000).astype(np.uint8)
    drifting, following, nothing = scores(np.stack([drifts, follows, noise]), held)
    assert abs(drifting - 0.5) < 0.06
    assert following == 1
    assert abs(nothing - 0.5) < 0.03
    # Within blocks of 1,000 alone: the definition, for noise and for numbers that rise with the text.
    numbers = (place // 500 * 100 + random.integers(0, 60, 5000)).astype(np.float32)
    wins = pairs = 0.0
    for begin in range(0, 5000, 1000):
        values, yes = noise[begin : begin + 1000].astype(float), held[begin : begin + 1000]
        signs = np.sign(values[yes][:, None] - values[~yes][None, :])
        wins, pairs = wins + ((1 + signs) / 2).sum(), pairs + signs.size
    assert nothing == pytest.approx(wins / pairs, abs=1e-6)
    own = (numbers % 100 + 20).astype(np.uint8)
    assert scores(own[None], (numbers % 100).astype(np.float32))[0] == pytest.approx(1)
    assert abs(scores(noise[None], numbers)[0]) < 0.05


def test_what_is_the_same_everywhere_has_no_score():
    tracks = np.zeros((2, 5), np.uint8)
    assert scores(tracks, np.ones(5, bool)) is None
    assert scores(tracks, np.ones(5, np.float32)) is None
    assert scores(np.zeros((2, 2000), np.uint8), np.arange(2000) < 1000) is None  # the same in each block
    assert scores(tracks, np.arange(5, dtype=np.float32)).tolist() == [0, 0]
    assert scores(tracks, np.arange(5) > 2).tolist() == [0.5, 0.5]
    assert strength(np.array([0.0, 0.5, 1.0]), np.ones(1, bool)).tolist() == [1, 0, 1]
    assert strength(np.array([-1.0, 0.0]), np.ones(1, np.float32)).tolist() == [1, 0]


def test_drift_is_variance_between_tenths_of_the_text():
    place = np.arange(4000)
    held = (place // 7) % 2
    rising, following, both = 254 * place / 4000, 200 * held, 30 * held + 180 * place / 4000
    still = np.full(4000, 127)
    found = drift(np.stack([rising, following, both, still]).astype(np.uint8))
    assert found[0] > 0.98
    assert found[1] < 0.01
    assert 0.5 < found[2] < 1
    assert found[3] == 0
    assert drift(np.array([[3]], np.uint8)) == 0  # a text of one place
