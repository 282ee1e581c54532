"""A progress line is drawn on a terminal, and nothing anywhere else."""

import io

import pytest
from rich.console import Console

from jaxunlearn.core import progress


@pytest.mark.parametrize("options", [{}, {"force_terminal": True, "quiet": True}])
def test_nothing_is_drawn_off_a_terminal(options):
    text = io.StringIO()
    with progress.bar(Console(file=text, **options), "npo", 10) as bar:
        bar.advance(1, 100, loss=0.5)
    assert text.getvalue() == ""


def test_a_terminal_shows_the_step_the_newest_values_and_the_rate():
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100)
    with progress.bar(console, "npo", 10, done=2) as bar:
        bar.advance(3, 100, loss=0.5, es=None)
        bar.advance(4, 100, loss=None, es=0.25)
    output = text.getvalue()
    assert "npo" in output and "4/10" in output and "tok/s" in output
    assert "loss 0.5" in output and "es 0.25" in output


def test_the_quiet_console_prints_nothing(capsys):
    progress.quiet_console().print("loud")
    assert capsys.readouterr().out == ""
