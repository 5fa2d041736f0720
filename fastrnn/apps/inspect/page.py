"""Page of `fastrnn inspect`: one self-contained HTML file.

Curves over the text are 8-bit levels (`fastrnn.inspect.ranking.quantised`) in base64: 4/3 of a byte for each unit of
the text and curve. A page of 1 MB holds about 25 curves over 20 kB of text;
`fastrnn.apps.inspect.reading.chosen` selects them. The text is stored as JSON and inserted as text nodes, so that none
of it is interpreted as markup.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np

from fastrnn.apps.inspect.reading import Reading, Track, chosen
from fastrnn.inspect.features import FEATURES, YES_OR_NO

MAX_BYTES = 1_000_000
#: Bytes of a curve besides its data.
_AROUND = 120
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def as_html(
    reading: Reading,
    about: str = "",
    *,
    tracks: Sequence[Track] = (),
    symbols: Any = None,
    ranks: int = 5,
    max_bytes: int = MAX_BYTES,
) -> str:
    """Return a reading as one self-contained HTML page.

    Args:
        reading: the result of `fastrnn.apps.inspect.read`.
        about: a line that describes the model and the text.
        tracks: units to include whatever they track, the first of them shown first.
        symbols: a function from an id to its display text; None for bytes.
        ranks: the number of units listed for each feature.
        max_bytes: the limit for the page's size, if the text itself and ``tracks`` permit.

    Raises:
        ValueError: there is no such track.
    """
    _check(reading, tracks)
    content = _content(reading, about, symbols or byte_symbol, ranks)
    base = len(_joined(content, "").encode())
    each = 4 * -(-reading.steps // 3) + _AROUND
    room = max(1, (max_bytes - base) // each)
    included = chosen(reading, tracks, room, ranks)
    content["tracks"] = [_as_json(reading, track) for track in included]
    count = f"{len(included):,} of {reading.tracks():,} curves (units × states and gates) are in this page"
    content["about"] = f"{about + '. ' if about else ''}{count}."
    return _joined(content, about)


def _check(reading: Reading, tracks: Sequence[Track]) -> None:
    for track in tracks:
        if not 0 <= track.layer < len(reading.names):
            raise ValueError(f"unit: expected a layer from 1 to {len(reading.names)} in {track}, got {track.layer + 1}")
        known = reading.quantities[track.layer]
        if track.quantity not in known:
            raise ValueError(f"unit: expected one of {', '.join(known)} in {track}, got {track.quantity!r}")
        width = len(reading.levels[track.layer, track.quantity])
        if not 0 <= track.unit < width:
            raise ValueError(f"unit: expected a unit from 1 to {width} in {track}, got {track.unit + 1}")


def byte_symbol(value: int) -> str:
    """Return the display text of a byte."""
    return chr(value) if value < 128 else f"\\x{value:02x}"


def _content(reading: Reading, about: str, symbol: Any, ranks: int) -> dict[str, Any]:
    ids, places = np.unique(reading.expected, return_inverse=True)
    steps = np.diff(reading.ends, prepend=-1)
    return {
        "about": about,
        "text": reading.text,
        "steps": "" if bool((steps == 1).all()) else "".join(map(str, steps.tolist())),
        "top": reading.expected.shape[1],
        "symbols": [symbol(int(value)) for value in ids],
        "expected": _base64(places.astype("<u2" if len(ids) > 256 else np.uint8)),
        "shares": _base64(np.rint(255 * reading.probabilities).astype(np.uint8)),
        "bits": _base64(np.rint(16 * np.nan_to_num(reading.bits)).clip(0, 255).astype(np.uint8)),
        "layers": [
            {"name": name, "quantities": quantities, "gates": gates}
            for name, quantities, gates in zip(reading.names, reading.quantities, reading.gates, strict=True)
        ],
        "ranking": [
            {
                "name": name,
                "measure": "AUC" if name in YES_OR_NO else "ρ",
                "rows": [[t.layer, t.quantity, t.unit, round(score, 3)] for t, score in reading.ranked(name, ranks)],
            }
            for name in FEATURES
        ],
        "saturation": [
            {"layer": layer, "gate": gate, "left": _shares(both[0]), "right": _shares(both[1])}
            for (layer, gate), both in reading.saturation.items()
        ],
        "tracks": [],
    }


def _as_json(reading: Reading, track: Track) -> dict[str, Any]:
    scale = reading.scales[track.layer, track.quantity]
    return {
        "layer": track.layer,
        "quantity": track.quantity,
        "unit": track.unit,
        "centre": scale.centre,
        "half": float(f"{scale.half[track.unit]:.6g}"),
        "data": _base64(reading.levels[track.layer, track.quantity][track.unit]),
    }


def _shares(values: np.ndarray) -> str:
    return _base64(np.rint(254 * values).astype(np.uint8))


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def _joined(content: dict[str, Any], about: str) -> str:
    files = resources.files("fastrnn.apps.inspect") / "page_files"
    body, style, script = ((files / name).read_text(encoding="utf-8") for name in ("body.html", "page.css", "page.js"))
    # Nothing in the text may end its element: without "<" there is neither "</script" nor "<!--".
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    data = data.encode("utf-8", "replace").decode()
    title = html.escape(f"Looking inside: {about}" if about else "Looking inside")
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{html.escape(_POLICY)}">',
            '<link rel="icon" href="data:,">',
            f"<title>{title}</title>",
            f"<style>\n{style}</style></head>",
            f"<body>\n{body}",
            f'<script type="application/json" id="data">{data}</script>',
            f"<script>\n{script}</script>",
            "</body></html>\n",
        ]
    )
