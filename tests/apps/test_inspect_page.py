"""A model's reading of a text, the page made of it, and `fastrnn inspect`."""

from __future__ import annotations

import base64
import json
import re

import numpy as np
import pytest
import torch
from lm_runs import tiny

from fastrnn import inspect
from fastrnn.apps import inspect as pages
from fastrnn.apps import lm
from fastrnn.apps.cli import main
from fastrnn.apps.inspect.page import byte_symbol
from fastrnn.apps.inspect.reading import chosen

HOSTILE = 'x = "</script><script>alert(1)</script>" <!-- & \\u003c \x00 \u2028 é→ --> # end\n\tif (y): pass\n'


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained model of bytes, and one of characters."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "text.txt").write_text(HOSTILE * 60, encoding="utf-8")
    lm.train(tiny(folder))
    lm.train(tiny(folder, unit="character", cell="gru", layers=1, out=str(folder / "characters")))
    return folder


def content(page):
    """The data in a page."""
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(found)


def decoded(text, dtype=np.uint8):
    return np.frombuffer(base64.b64decode(text), dtype)


def test_a_reading_is_what_the_model_computes(run):
    model = lm.load(run / "run")
    reading = pages.read(model, HOSTILE, top=4)
    ids = torch.from_numpy(np.frombuffer(HOSTILE.encode(), np.uint8).astype(np.int64))
    with torch.no_grad():
        shares = torch.softmax(model(ids.unsqueeze(1))[0].squeeze(1), -1)
    best = shares.topk(4, -1)
    assert np.array_equal(reading.expected, best.indices.numpy())
    np.testing.assert_allclose(reading.probabilities, best.values.numpy(), rtol=1e-4)
    cost = -torch.log2(shares[:-1].gather(-1, ids[1:].unsqueeze(-1)).squeeze(-1))
    np.testing.assert_allclose(reading.bits[1:], cost.numpy(), rtol=1e-4)
    assert np.isnan(reading.bits[0])
    assert reading.text == HOSTILE
    assert reading.quantities == [["h", "c", "i", "f", "o"]] * 2
    assert reading.gates == [["i", "f", "o"]] * 2
    x = torch.nn.functional.embedding(ids.unsqueeze(1), model.rows()).detach()
    for number, layer in enumerate(inspect.follow(model.recurrent, x)):
        for name, values in {**layer.states, **layer.gates}.items():
            scale = reading.scales[number, name]
            shown = scale.centre + (reading.levels[number, name].T.astype(float) - 127) / 127 * scale.half
            assert (np.abs(shown - values.squeeze(1).numpy()) <= scale.half / 254 * (1 + 1e-5)).all()
            if name in layer.states:
                assert (np.abs(reading.levels[number, name].astype(int) - 127).max(1) == 127).all()
        for name, values in layer.gates.items():
            low, high = reading.saturation[number, name]
            np.testing.assert_allclose(low, (values < 0.1).float().mean((0, 1)).numpy(), atol=1e-6)
            np.testing.assert_allclose(high, (values > 0.9).float().mean((0, 1)).numpy(), atol=1e-6)


def test_features_of_bytes_are_those_of_their_characters(run):
    reading = pages.read(run / "run", 'é"→"')
    assert reading.text == 'é"→"'
    assert reading.ends.tolist() == [1, 2, 5, 6]
    assert reading.features["position in the line"].tolist() == [0, 1, 2, 2, 2, 3, 4]
    assert reading.features["inside quotes"].tolist() == [False, False, True, True, True, True, False]


def test_what_is_no_text_is_shown_as_such(run):
    reading = pages.read(run / "run", b"a\xff\xc3")
    assert (reading.text, reading.ends.tolist(), reading.steps) == ("a\ufffd", [0, 1], 3)
    assert content(pages.as_html(reading))["text"] == "a\ufffd"
    assert pages.read(run / "run", b"\xc3").text == ""
    pages.as_html(pages.read(run / "run", b"\xc3"))


def test_a_hostile_text_is_data(run):
    page = pages.as_html(pages.read(run / "run", HOSTILE), about=HOSTILE)
    assert page.count("</script>") == 2  # those of the page itself
    assert "alert(1)</script>" not in page
    assert "<!--" not in page
    found = content(page)
    assert found["text"] == HOSTILE
    assert "<title>Looking inside: x = &quot;&lt;/script&gt;" in page
    assert "http:" not in page.replace("http://www.w3.org/2000/svg", "")  # the name of SVG's elements
    assert not re.search(r"https:|//cdn|@import|url\(", page)


def test_a_page_of_20_kb_of_text_is_under_1_mb(run):
    text = (HOSTILE * 400).encode()[:20_000]
    reading = pages.read(run / "run", text)
    page = pages.as_html(reading).encode()
    assert 900_000 < len(page) <= 1_000_000
    found = content(page.decode())
    assert 20 < len(found["tracks"]) < reading.tracks() == 2 * 5 * 9
    assert f"{len(found['tracks'])} of 90 curves" in found["about"]
    for track in found["tracks"]:
        levels = decoded(track["data"])
        assert np.array_equal(levels, reading.levels[track["layer"], track["quantity"]][track["unit"]])
    kept = {(t["layer"], t["quantity"], t["unit"]) for t in found["tracks"]}
    for feature in found["ranking"]:  # the best of every feature is among them
        assert not feature["rows"] or tuple(feature["rows"][0][:3]) in kept, feature["name"]


def test_a_short_text_has_every_unit(run):
    reading = pages.read(run / "run", HOSTILE)
    found = content(pages.as_html(reading))
    assert len(found["tracks"]) == reading.tracks() == 90
    assert "".join(found["steps"]) == "".join(str(len(c.encode())) for c in HOSTILE)
    assert decoded(found["expected"]).shape == (3 * reading.steps,)
    first = [found["symbols"][k] for k in decoded(found["expected"])[:3]]
    assert first == [byte_symbol(int(k)) for k in reading.expected[0]]
    np.testing.assert_allclose(decoded(found["shares"]) / 255, reading.probabilities.ravel(), atol=0.5 / 255 + 1e-6)


def test_units_that_are_asked_for_come_first(run):
    reading = pages.read(run / "run", HOSTILE)
    wanted = [pages.Track(1, "f", 8), pages.Track(0, "c", 0)]
    assert chosen(reading, wanted, 1, 5) == wanted
    assert chosen(reading, wanted, 40, 5)[:2] == wanted
    assert len(set(chosen(reading, wanted, 40, 5))) == 40
    found = content(pages.as_html(reading, tracks=wanted, max_bytes=1))
    assert [(t["layer"], t["quantity"], t["unit"]) for t in found["tracks"]] == [(1, "f", 8), (0, "c", 0)]
    for track, message in (
        (pages.Track(2, "c", 0), "expected a layer from 1 to 2 in 3:c:1, got 3"),
        (pages.Track(1, "r", 0), "expected one of h, c, i, f, o in 2:r:1, got 'r'"),
        (pages.Track(1, "h", 9), "expected a unit from 1 to 9 in 2:h:10, got 10"),
    ):
        with pytest.raises(ValueError, match=message):
            pages.as_html(reading, tracks=[track])


def test_a_unit_that_is_a_feature_is_found(run):
    """A state replaced by position in the line must come first for it, also when it falls as the position rises."""
    reading = pages.read(run / "run", HOSTILE, syntax="python")
    position = reading.features["position in the line"]
    reading.levels[1, "c"][4] = 200 - position.astype(np.uint8)
    ((track, score),) = reading.ranked("position in the line", 1)
    assert (str(track), round(score, 6)) == ("2:c:5", -1)
    reading.levels[0, "f"][2] = np.where(reading.features["in a comment"], 201, 200)
    ((track, score),) = reading.ranked("in a comment", 1)
    assert (str(track), score) == ("1:f:3", 1)
    units = [(t.layer, t.unit) for t, _ in reading.ranked("inside a word", 5)]
    assert len(units) == len(set(units)) == 5


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"text": ""}, ValueError, "text: expected at least one character, got none"),
        ({"text": "a", "top": 0}, ValueError, "top: expected at least 1, got 0"),
        ({"text": "a", "syntax": "lisp"}, ValueError, "syntax: expected one of auto, python, c, text, got 'lisp'"),
    ],
)
def test_wrong_arguments(run, arguments, error, message):
    with pytest.raises(error, match=message):
        pages.read(run / "run", **arguments)


def test_characters(run):
    model = run / "characters"
    reading = pages.read(model, "é→ #")
    assert reading.quantities == [["h", "r", "z"]]
    assert reading.steps == 4
    with pytest.raises(ValueError, match="text: expected characters of the vocabulary"):
        pages.read(model, "Z")
    with pytest.raises(ValueError, match=r"text: expected UTF-8, got b'\\xff' at byte 1"):
        pages.read(model, b"x\xff")


def test_command(run, tmp_path, capsys):
    text, out = run / "text.txt", tmp_path / "page.html"
    options = ["--out", str(out), "--begin", "3", "--limit", "50", "--unit", "2:c:7", "--top", "2"]
    assert main(["inspect", str(run / "run"), str(text), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    size = out.stat().st_size
    assert re.fullmatch(rf"{out} \({size:,} bytes\): 50 bytes of text, \d\.\d{{3}} bits per byte", lines[0])
    assert lines[1].startswith("more text follows; continue with --begin 53, or use")
    found = content(out.read_text(encoding="utf-8"))
    assert found["text"] == text.read_bytes()[3:53].decode()
    assert found["about"].startswith("lstm 2×9 (step-00000012.pt) reads bytes 4 to 53 of text.txt. 90 of 90 curves")
    first = found["tracks"][0]
    assert (first["layer"], first["quantity"], first["unit"]) == (1, "c", 6)
    assert len(lines) == 2
    assert main(["inspect", str(run / "run"), str(text), *options, "--max-bytes", "2000"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("larger than --max-bytes 2000: the text, its")
    assert main(["inspect", str(run / "characters"), str(text), "--out", str(out)]) == 0
    assert "characters of text" in capsys.readouterr().out
    found = content(out.read_text(encoding="utf-8"))
    assert set(found["symbols"]) <= set(HOSTILE)
    assert found["steps"] == ""


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["nix.pt", "TEXT"], 1, "checkpoint: expected a file or a folder with checkpoints, but nix.pt does not exist"),
        (["RUN", "nix.txt"], 2, "argument TEXT: expected a text file, got 'nix.txt', which is not a file"),
        (["RUN", "TEXT", "--unit", "c:3"], 2, "argument --unit: expected LAYER:NAME:UNIT as in 2:c:17"),
        (["RUN", "TEXT", "--unit", "1:r:3"], 2, "argument --unit: expected one of h, c, i, f, o in 1:r:3, got 'r'"),
        (["RUN", "TEXT", "--begin", "99999"], 2, "argument --begin: expected less than the length of"),
        (["RUN", "EMPTY"], 2, "argument TEXT: expected some text, got"),
        (["RUN", "TEXT", "--limit", "0"], 2, "argument --limit: expected at least 1, got 0"),
        (["RUN", "TEXT", "--max-bytes", "0"], 2, "argument --max-bytes: expected at least 1, got 0"),
        (["RUN", "TEXT", "--threads", "0"], 2, "argument --threads: expected at least 1, got 0"),
        (["RUN", "TEXT", "--limit", "9", "--out", "no/such/folder.html"], 1, "No such file or directory"),
    ],
)
def test_command_with_wrong_arguments(run, args, status, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    places = {"RUN": str(run / "run"), "TEXT": str(run / "text.txt"), "EMPTY": str(run / "empty.txt")}
    (run / "empty.txt").touch()
    assert main(["inspect", *(places.get(a, a) for a in args)]) == status
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
