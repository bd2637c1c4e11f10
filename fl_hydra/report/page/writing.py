"""The page as a file: its parts, the data and the plotting library in one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from fl_hydra.errors import UserError
from fl_hydra.files import make_folder, write_atomically
from fl_hydra.report.cost import CostTable
from fl_hydra.report.page.content import content
from fl_hydra.report.results import Results
from fl_hydra.report.spec import Spec


def write_page(sections: Sequence[tuple[Results, Spec]], table: CostTable, target: Path) -> Path:
    """Write `index.html` into a folder, whole or not at all.

    Args:
        sections: what is on the page, in this order; there may be none.
        table: networks and devices, which times are computed for.
        target: the report's folder, made if it is not there; links to runs are relative to it.

    Returns:
        The page.

    Raises:
        UserError: it cannot be written there.
    """
    page = target / "index.html"
    text = assemble(content(sections, table, target))
    try:
        make_folder(target)
        write_atomically(page, text.encode())
    except OSError as error:
        raise UserError(f"{page} cannot be written ({error.strerror or error}); fix that, or choose outputs=") from error
    return page


def assemble(data: Mapping[str, Any]) -> str:
    """The page around its data.

    Raises:
        UserError: the plotting library is not installed.
    """
    parts = {
        "style": _asset("page.css"),
        "data": as_script(data),
        "library": _library(),
        "script": "\n".join(_asset(name) for name in ("data.js", "drawing.js", "page.js")),
    }
    before, *pieces = _asset("page.html").split("{{")
    return before + "".join(parts[name] + after for name, _, after in (piece.partition("}}") for piece in pieces))


def as_script(data: Mapping[str, Any]) -> str:
    """JSON that ends no script element and opens no comment, whatever the text in it says."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _asset(name: str) -> str:
    return files("fl_hydra.report.page").joinpath("assets", name).read_text("utf-8")


def _library() -> str:
    """Plotly's script, of its Python package, of which nothing else is imported."""
    try:
        text = files("plotly").joinpath("package_data", "plotly.min.js").read_text("utf-8")
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise UserError("index.html needs the package plotly: pip install -c constraints.txt plotly") from error
    return text.replace("</script", "<\\/script")
