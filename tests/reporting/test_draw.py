"""Figures as files."""

import contextlib
import os
import pathlib
import subprocess
import sys
import time

import matplotlib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.reporting.figures import draw
from tests.reporting.synthetic import make_tables


class TestDrawAll:
    def test_writes_every_figure_once(self, tmp_path):
        paths = draw.draw_all(make_tables(("npo", "wga"), samples=6), tmp_path / "new" / "figs")
        assert [path.name for path in paths] == [
            "g_effect.png", "plane.png", "harm_ratio.png", "risk_change.png",
            "predicted_vs_realised.png", "confidence.png", "weights.png", "pg_density_npo.png",
            "pg_density_wga.png",
        ]  # fmt: skip
        papers = [path.with_suffix(".pdf") for path in paths]
        assert sorted((tmp_path / "new/figs").iterdir()) == sorted([*paths, *papers])
        assert all(path.read_bytes()[:4] == b"\x89PNG" for path in paths)
        assert all(path.read_bytes()[:5] == b"%PDF-" for path in papers)

    def test_returns_only_what_it_drew(self, tables, tmp_path):
        some = {"confidence": tables["confidence"], "samples": {}, "meta": tables["meta"]}
        assert [p.name for p in draw.draw_all(some, tmp_path)] == ["confidence.png"]
        assert draw.draw_all({}, tmp_path / "none") == []

    def test_same_tables_same_bytes(self, tables, tmp_path):
        some = {"confidence": tables["confidence"]}
        first, second = (draw.draw_all(some, tmp_path / name)[0] for name in "ab")
        assert first.read_bytes() == second.read_bytes()
        papers = [path.with_suffix(".pdf").read_bytes() for path in (first, second)]
        assert papers[0] == papers[1]

    def test_a_failed_write_leaves_the_old_file(self, tables, tmp_path, monkeypatch):
        (path,) = draw.draw_all({"confidence": tables["confidence"]}, tmp_path)
        before = path.read_bytes()

        def half(self, part, **kwargs):
            part.write_bytes(b"half")
            raise OSError("no space left")

        monkeypatch.setattr(matplotlib.figure.Figure, "savefig", half)
        with pytest.raises(OSError, match="no space left"):
            draw.draw_all({"confidence": tables["confidence"]}, tmp_path)
        assert path.read_bytes() == before
        assert sorted(tmp_path.iterdir()) == [path.with_suffix(".pdf"), path]

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.text("aA/:$.-2", max_size=5), unique=True, max_size=6))
    def test_file_names_are_safe_and_distinct(self, names):
        stems = draw._stems(names)
        assert len({stem.lower() for stem in stems}) == len(names)
        assert all("/" not in stem and ":" not in stem and stem[0] != "." for stem in stems)

    def test_file_names_are_readable_and_short(self):
        assert draw._stems(["NPO beta=0.1", "x" * 99]) == ["npo_beta=0.1", "x" * 60]


def test_several_processes_draw_the_same_files(tmp_path):
    tables = make_tables(("npo", "wga"), samples=6)
    alone = draw.draw_all(tables, tmp_path / "one")
    together = draw.draw_all(tables, tmp_path / "three", processes=3)
    assert [path.name for path in together] == [path.name for path in alone]
    for path in (tmp_path / "one").iterdir():
        assert (tmp_path / "three" / path.name).read_bytes() == path.read_bytes()


def test_an_error_in_another_process_is_raised(tmp_path):
    tables = make_tables(("npo", "wga"), samples=6)
    tables["confidence"]["log10_inverse"] = ["x"] * len(tables["confidence"]["step"])
    assert list(draw.FIGURES).index("confidence") % 2 == 1  # so the second process draws it
    for processes in (1, 2):
        with pytest.raises(ValueError, match="could not convert string to float: 'x'"):
            draw.draw_all(tables, tmp_path / str(processes), processes=processes)


@pytest.mark.parametrize("processes", [1, 2])
def test_other_work_is_done_before_this_process_draws(tmp_path, processes):
    tables = make_tables(("npo",), samples=6)
    _, own = draw._shares(list(draw.FIGURES), 2, ahead=draw.AHEAD)[::-1]
    seen = []
    look = lambda: seen.append([name for name in own if (tmp_path / f"{name}.png").exists()])
    drawn = draw.draw_all(tables, tmp_path, processes=processes, meanwhile=look)
    assert seen == [[]] and [path.name for path in drawn] == [
        path.name for path in draw.draw_all(tables, tmp_path / "alone")
    ]
    with pytest.raises(OSError, match="no space left"):
        draw.draw_all(tables, tmp_path, processes=processes, meanwhile=no_space)


def no_space():
    raise OSError("no space left")


@pytest.mark.parametrize("processes", [0, -1, 2000])
def test_a_bad_number_of_processes(tmp_path, processes):
    with pytest.raises(ValueError, match=rf"processes: {processes} must be in 1\.\.1024"):
        draw.draw_all(make_tables(), tmp_path / "new", processes=processes)
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(not pathlib.Path("/proc").is_dir(), reason="needs /proc")
def test_processes_end_with_the_one_that_began_them(tmp_path):
    """Also where it is killed while they draw."""
    script = tmp_path / "script.py"
    script.write_text(
        "from jaxunlearn.reporting.figures import draw\n"
        "from tests.reporting.synthetic import make_tables\n"
        "if __name__ == '__main__':\n"
        "    while True:\n"
        f"        draw.draw_all(make_tables(), {str(tmp_path / 'figures')!r}, processes=2)\n"
    )
    root = pathlib.Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    # In a session of its own, by whose number its processes are known.
    with subprocess.Popen(
        [sys.executable, str(script)], start_new_session=True, env=environment
    ) as process:
        try:
            # The first figure of the second process: it is at work.
            wait_until((tmp_path / "figures" / "plane.png").exists)
            assert len(of_session(process.pid)) >= 2
        finally:
            process.kill()
    wait_until(lambda: not of_session(process.pid))


def of_session(number):
    """The processes of a session, zombies left out."""
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(session) == number and state != "Z":
                found.append(stat.parent.name)
    return found


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nonsense"])
def test_a_backend_that_is_not_installed_does_not_matter(tmp_path, backend):
    """A notebook hands its own on to the processes it starts."""
    code = (
        "import os\n"
        "from jaxunlearn.reporting.figures import draw\n"
        "from tests.reporting.synthetic import make_tables\n"
        f"draw.draw_all({{'confidence': make_tables()['confidence']}}, {str(tmp_path)!r})\n"
        f"assert os.environ['MPLBACKEND'] == {backend!r}\n"
    )
    environment = {**os.environ, "MPLBACKEND": backend}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert (tmp_path / "confidence.png").exists()
