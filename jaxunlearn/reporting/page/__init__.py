"""The report as one self-contained HTML page; needs the extra `report`."""

import importlib.util
from pathlib import Path

from jaxunlearn.core import files
from jaxunlearn.reporting.compare import Comparison
from jaxunlearn.reporting.page.source import Source

LIBRARIES = ("altair", "vl_convert")
MISSING = "no report.html: it needs the extra `report` (pip install 'jaxunlearn[report]')"
"""What is said where the libraries of the page are not installed."""


def is_installed() -> bool:
    """Whether the extra `report` is installed, without which no page is written."""
    return all(importlib.util.find_spec(name) is not None for name in LIBRARIES)


def write(source: Source, file: Path) -> None:
    """Writes the page, whole or not at all; not where `is_installed` says no.

    Args:
      source: what it shows, from `source.read`.
      file: where it goes.
    """
    if not is_installed():
        return
    from jaxunlearn.reporting.page import render  # imports the libraries

    files.write_text(file, render.render(source))


def write_comparison(compared: Comparison, file: Path) -> None:
    """The same for the page that compares runs, from `compare.compare`."""
    if not is_installed():
        return
    from jaxunlearn.reporting.page import comparison

    files.write_text(file, comparison.render(compared))
