"""Sphinx configuration of the documentation; ``make docs`` builds it. Nothing is downloaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fastrnn import __version__

project = "fastrnn"
author = "The fastrnn authors"
copyright = author
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["conf.py"]
default_role = "py:obj"  # `name` in a docstring links to that object if it is documented here

myst_heading_anchors = 4  # the anchors of a code host, so that page.md#section works in both places
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
maximum_signature_line_length = 100  # longer ones have a line for each argument

html_theme = "furo"
html_title = f"fastrnn {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False


def literal_equations(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turn the indented equations of a gallery cell's docstring into a literal block: ``f*c`` is no emphasis."""
    if not name.startswith("fastrnn.gallery."):
        return
    indented = [number for number, line in enumerate(lines) if line.startswith("    ")]
    if indented:
        lines[indented[0] : indented[0]] = [".. code-block:: text", ""]


def offer_files(app: Any, name: str, text: list[str]) -> None:
    """Make links out of docs/ (examples, results, sources) downloads; myst takes those to Markdown for pages."""
    docs = Path(app.srcdir)
    folder = (docs / name).parent

    def link(found: re.Match[str]) -> str:
        outside = docs not in (folder / found[1]).resolve().parents
        return f"](<path:{found[1]}>)" if outside else found[0]

    text[0] = re.sub(r"\]\((\.\./[^)#]+)(?:#[^)]*)?\)", link, text[0])


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", literal_equations)
    app.connect("source-read", offer_files)
    return {"parallel_read_safe": True}
