"""A progress line is redrawn on a terminal; anywhere else there is at most one line a minute."""

import io

import pytest
from rich.console import Console

from jaxunlearn.core import progress


@pytest.mark.parametrize("options", [{}, {"force_terminal": True, "quiet": True}])
def test_nothing_is_said_within_a_minute_off_a_terminal(options):
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


def test_off_a_terminal_there_is_a_line_a_minute(monkeypatch):
    now, text = [0.0], io.StringIO()
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    with progress.bar(Console(file=text, width=20), "npo", 100, done=10) as bar:
        for step in range(11, 71):
            now[0] += 7.0
            bar.advance(step, 700, loss=step / 100)
    lines = text.getvalue().splitlines()
    assert len(lines) == 6  # in 420 seconds; a step takes 7, so 9 of them are between two lines
    assert lines[0].split("  ") == ["npo 19/100", "loss 0.19", "100 tok/s", "9 min left"]


def test_a_quiet_console_stays_quiet(monkeypatch):
    now, text = [0.0], io.StringIO()
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    with progress.bar(Console(file=text, quiet=True), "npo", 10) as bar:
        now[0] = 1000.0
        bar.advance(1)
    assert text.getvalue() == ""


def test_the_quiet_console_prints_nothing(capsys):
    progress.quiet_console().print("loud")
    assert capsys.readouterr().out == ""


def test_lines_are_printed_as_they_are():
    text = io.StringIO()
    names = ["[red]npo[/red]", "[/]", "a/folder/with a name/longer/than/the/console"]
    progress.say(Console(file=text, width=10), *names, style="bold")
    assert text.getvalue().splitlines() == names
