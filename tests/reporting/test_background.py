"""Reports that processes of their own write: what they say, and that none outlives its run."""

import io

import pytest
from rich.console import Console

from jaxunlearn.reporting.background import BackgroundReports

pytestmark = pytest.mark.slow


def test_a_report_that_cannot_be_written_says_why(tmp_path, monkeypatch):
    (tmp_path / "rich.py").write_text("raise SystemExit('code from the current folder')")
    monkeypatch.chdir(tmp_path)
    console = Console(file=io.StringIO())
    with BackgroundReports() as reports:
        reports.begin(tmp_path / "nothing", console)
        with pytest.raises(ChildProcessError) as error:
            reports.finish()
    words = str(error.value)
    assert words.startswith(f"{tmp_path / 'nothing'}: no report was written: ")
    assert "current folder" not in words and "\n" not in words
    assert "no finished run" in words


def test_a_run_that_ends_early_ends_its_reports(tmp_path):
    with pytest.raises(KeyboardInterrupt), BackgroundReports() as reports:
        reports.begin(tmp_path, Console(file=io.StringIO()))
        process = reports._begun[0].process
        assert process.poll() is None
        raise KeyboardInterrupt
    assert process.poll() is not None
