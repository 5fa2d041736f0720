"""The page in a real browser: no errors, no requests, colours that follow the unit, the keyboard."""

from __future__ import annotations

import re

import browser
import pytest
from lm_runs import tiny

from fastrnn.apps import inspect as pages
from fastrnn.apps import lm

pytestmark = pytest.mark.skipif(browser.path() is None, reason=f"no browser: none of {', '.join(browser.NAMES)}")

TEXT = 'def f(x):  # "é"\n\treturn [x, "</script><b>no</b>"]\n\nx = 1\n' * 3
CTRL = 2


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page's file, and what it was made of."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "text.txt").write_text(TEXT * 30, encoding="utf-8")
    lm.train(tiny(folder))
    reading = pages.read(folder / "run", TEXT)
    file = folder / "page <&'\">.html"
    file.write_text(pages.as_html(reading, "a test"), encoding="utf-8")
    return file, reading


@pytest.fixture(scope="module")
def window(tmp_path_factory, page):
    with browser.Browser(tmp_path_factory.mktemp("browser")) as found:
        found.open(page[0])
        yield found


@pytest.fixture(autouse=True)
def _no_errors_and_no_requests(window):
    yield
    assert window.errors == []
    assert window.requests == window.opened


def colours(window):
    return window.run("[...document.querySelectorAll('#text span')].map(s => getComputedStyle(s).backgroundColor)")


def choice(window):
    return window.run("['layer', 'quantity', 'unit'].map(id => document.getElementById(id).value)")


def select(window, name, value):
    window.run(
        f"{{const s = document.getElementById('{name}'); s.value = '{value}'; s.dispatchEvent(new Event('change'))}}"
    )


def readout(window):
    return window.run("document.getElementById('readout').innerText")


def test_the_text_is_there_and_is_no_markup(window):
    assert window.run("document.getElementById('text').textContent") == TEXT
    assert window.run("document.querySelectorAll('#text b, script').length") == 2  # the data and the page's own script
    assert window.run("document.title") == "Looking inside: a test"
    assert "a test. 90 of 90 curves" in window.run("document.getElementById('about').textContent")


def test_choosing_a_unit_recolours_the_text_by_its_values(window, page):
    for layer, quantity, unit in ((0, "c", 3), (1, "f", 8), (1, "h", 0)):
        select(window, "layer", layer)
        select(window, "quantity", quantity)
        select(window, "unit", unit)
        assert choice(window) == [str(layer), quantity, str(unit)]
        levels = page[1].levels[layer, quantity][unit][page[1].ends]
        for level, colour in zip(levels.tolist(), colours(window), strict=True):
            red, _, blue, *alpha = map(float, re.findall(r"[\d.]+", colour))
            assert (alpha[0] if alpha else 1.0) == pytest.approx(abs(level - 127) / 127 * 0.62, abs=0.01)
            assert level == 127 or (red > blue) == (level < 127)


def test_the_readout_has_the_number_and_what_was_expected(window, page):
    reading = page[1]
    select(window, "layer", 1)
    select(window, "quantity", "c")
    select(window, "unit", 2)
    k = TEXT.index("é")
    window.run(
        f"document.querySelectorAll('#text span')[{k}].dispatchEvent(new Event('pointerover', {{bubbles: true}}))"
    )
    step, scale = int(reading.ends[k]), reading.scales[1, "c"]
    value = scale.centre + (int(reading.levels[1, "c"][2, step]) - 127) / 127 * scale.half[2]
    text = readout(window)
    assert text.startswith(f"é line 1, column {k + 1}\nlayer 2, state c, unit 3: ")
    assert f"{abs(value):.3f}" in text
    both = reading.bits[int(reading.ends[k - 1]) + 1 : step + 1]  # é has two bytes
    assert len(both) == 2
    cost = float(re.findall(r"cost the model ([\d.]+) bits", text)[0])
    assert cost == pytest.approx(sum(round(16 * float(b)) for b in both) / 16, abs=0.051)
    rows = window.run("[...document.querySelectorAll('#expected tr')].map(r => r.innerText)")
    assert len(rows) == 3
    share = round(255 * float(reading.probabilities[step, 0])) / 255
    assert f"{100 * share:.{1 if share < 0.0995 else 0}f} %" in rows[0]


def test_what_came_is_marked_among_what_was_expected(window, page):
    reading, raw, found = page[1], TEXT.encode(), 0
    for k in range(TEXT.index("\n") + 1):
        window.run(
            f"document.querySelectorAll('#text span')[{k}].dispatchEvent(new Event('pointerover', {{bubbles: true}}))"
        )
        step = int(reading.ends[k])
        wanted = [int(one) == raw[step + 1] for one in reading.expected[step]]
        marked = "[...document.querySelectorAll('#expected tbody tr')].map(r => r.className === 'came')"
        assert window.run(marked) == wanted
        found += any(wanted)
    assert found > 0


def test_arrow_keys_move_the_place(window):
    window.run("document.getElementById('text').focus()")
    where = lambda: re.findall(r"line (\d+), column (\d+)", readout(window))[0]  # noqa: E731
    window.press("Home", CTRL)
    assert where() == ("1", "1")
    window.press("ArrowRight")
    window.press("ArrowRight")
    assert where() == ("1", "3")
    window.press("ArrowDown")
    assert where() == ("2", "3")
    window.press("ArrowDown")  # an empty line
    assert where() == ("3", "1")
    window.press("ArrowUp")
    window.press("End")
    assert where() == ("2", str(len(TEXT.splitlines()[1]) + 1))
    window.press("End", CTRL)
    assert where()[0] == str(TEXT.count("\n"))
    assert window.run("document.querySelectorAll('#text .at').length") == 1


def test_keys_change_the_unit(window):
    select(window, "unit", 0)
    before = colours(window)
    window.run("document.getElementById('text').focus()")
    window.press("n")
    assert choice(window)[2] == "1"
    assert colours(window) != before
    window.press("p")
    assert colours(window) == before
    window.press("p")  # around the end
    assert choice(window)[2] == "8"


def test_everything_is_reached_by_tab_and_can_be_pressed(window):
    window.run("document.getElementById('layer').focus()")
    seen = []
    for _ in range(6):
        window.press("Tab")
        seen.append(window.run("document.activeElement.id || document.activeElement.dataset.key"))
    assert seen[:5] == ["quantity", "unit", "previous", "next", "text"]
    layer, quantity, unit = seen[5].split(":")
    window.press(" ")
    assert choice(window) == [layer, quantity, unit]
    assert window.run("document.activeElement.getAttribute('aria-pressed')") == "true"


def test_saturation_has_a_dot_for_every_unit_and_gate(window):
    dots = window.run("[...document.querySelectorAll('#saturation svg .dot')].length")
    assert dots == 2 * 3 * 9
    assert window.run("document.querySelectorAll('#saturation .ring').length") == 3


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_fits_and_is_readable(window, width, dark):
    window.resize(width, 900, dark)
    assert window.run("document.documentElement.scrollWidth") <= width
    ground, ink = window.run(
        "['backgroundColor', 'color'].map(p => getComputedStyle(document.body)[p].match(/\\d+/g).map(Number))"
    )
    plus, minus, strongest = window.run(
        "['--plus', '--minus', '--strongest'].map(p => getComputedStyle(document.documentElement).getPropertyValue(p))"
    )
    assert (sum(ground) < sum(ink)) == dark
    for colour in (plus, minus):  # the text on the strongest colour: WCAG's contrast for normal text
        share = float(strongest)
        mixed = [share * c + (1 - share) * g for c, g in zip(map(float, colour.split()), ground, strict=True)]
        assert contrast(mixed, ink) >= 4.5


@pytest.mark.parametrize(
    ("cell", "text"), [("rnn_tanh", "x"), ("min_gru", "\n\n"), ("slstm", b"\xff\xc3"), ("lstm", b"\xc3")]
)
def test_other_cells_and_odd_texts(window, tmp_path, cell, text):
    lm.train(tiny(tmp_path, cell=cell, layers=1, steps=2))
    reading = pages.read(tmp_path / "run", text)
    file = tmp_path / "page.html"
    file.write_text(pages.as_html(reading, cell), encoding="utf-8")
    window.open(file)
    assert window.run("document.getElementById('text').textContent") == reading.text
    options = window.run("[...document.getElementById('quantity').options].map(o => o.textContent)")
    gates = reading.gates[0]
    assert options == [f"{'gate' if name in gates else 'state'} {name}" for name in reading.quantities[0]]
    assert window.run("document.querySelectorAll('#saturation svg').length") == len(gates)
    said = "The cells of this model have no gates." in window.run("document.body.innerText")
    assert said == (not gates)
    window.run("document.getElementById('text').focus()")
    for key in ("ArrowRight", "ArrowDown", "End", "n"):
        window.press(key)


def contrast(one, other):
    def luminance(colour):
        parts = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)
