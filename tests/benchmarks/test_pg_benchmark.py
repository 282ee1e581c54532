"""The benchmark of PG-effects: its peers give the same numbers, and its checks can fail."""

import dataclasses
import json

import numpy as np
import pytest

from benchmarks import pg_check, pg_effect, pg_jobs, pg_measure, pg_memory, pg_report
from benchmarks.pg_way import UNIT, Way

COUNTS = [(12, 5), (20, 9), (9, 4)]


@pytest.fixture(scope="module")
def job():
    return pg_check.with_gradients(pg_jobs.random_job("tiny", COUNTS))


@pytest.fixture(scope="module")
def exact(job):
    return pg_check.reference(job)


@pytest.mark.slow
def test_layers_sum_to_the_total_in_float64(exact):
    assert (exact.dtype, exact.layers.dtype) == ("float64", np.float64)
    assert np.all(np.abs(exact.layers.sum(-1)) <= exact.scale)  # Cauchy and Schwarz


@pytest.mark.slow
def test_jax_ways_agree_with_float64(job, exact):
    candidates, _ = pg_measure.build(job, (2,), ["jvp", "gates, remat", "lax.map"])
    ways = [way for ways in candidates for way in ways if not way.name.startswith("torch")]
    assert len(ways) == 4
    for way in ways:
        error = pg_check.checked(way, exact, 1e-5)
        assert (error is None) == (way.name == UNIT)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_torch_ways_agree_with_float64(job, exact):
    pytest.importorskip("torch")
    candidates, _ = pg_measure.build(job, (2,), ["torch"])
    ways = [way for ways in candidates for way in ways if way.name.startswith("torch") and way.k]
    assert {way.name for way in ways} >= {"torch ghost dot", "torch jvp", "torch vmap(grad), dot"}
    for way in ways:
        assert pg_check.checked(way, exact, 1e-5) is not None


def test_a_wrong_way_is_an_error(exact):
    wrong = exact.layers.sum(-1) + 1e-3 * exact.scale
    way = Way("wrong", 2, "padded", lambda: wrong)
    with pytest.raises(pg_check.Disagrees, match=r"wrong \(K=2.*over 1e-04; nothing was timed"):
        pg_check.checked(way, exact, 1e-4)
    inexact = dataclasses.replace(way, exact=False)
    np.testing.assert_allclose(pg_check.checked(inexact, exact, 1e-4), 1e-3, rtol=1e-6)


def test_every_feed_holds_every_sample_once():
    job = pg_jobs.random_job("tiny", pg_jobs.synthetic_lengths(9))
    for layout in (pg_jobs.packed, pg_jobs.padded, pg_jobs.buckets, pg_jobs.singles):
        feed = layout(job)
        ids = np.concatenate([batch.sample_ids.ravel() for batch in feed.batches])
        assert sorted(ids[ids >= 0]) == list(range(9))
        slots = [np.asarray(batch.sample_ids, float).reshape(1, -1) for batch in feed.batches]
        np.testing.assert_array_equal(pg_jobs.collect(feed, slots), [np.arange(9)])
    size = lambda feed: sum(batch.tokens.size for batch in feed.batches)
    assert size(pg_jobs.buckets(job)) < size(pg_jobs.padded(job))


def test_synthetic_lengths_are_those_of_tofu():
    tokens = [t for t, _ in pg_jobs.synthetic_lengths(400)]
    assert abs(np.mean(tokens) - 74) < 1
    np.testing.assert_allclose(np.percentile(tokens, [5, 95]), [46, 114], atol=3)


@pytest.mark.parametrize(
    "content, counts",
    [
        ([12, 20], {(12, 7), (20, 12)}),
        ([[12, 5], [20, 9]], {(12, 5), (20, 9)}),
        ({"splits": {"a": {"tokens": [12, 20], "labels": [5, 9]}}}, {(12, 5), (20, 9)}),
    ],
)
def test_lengths_from_a_file(tmp_path, content, counts):
    file = tmp_path / "lengths.json"
    file.write_text(json.dumps(content))
    assert set(pg_jobs.read_lengths(file, 2)) == counts
    with pytest.raises(ValueError, match="3 samples asked, it holds 2"):
        pg_jobs.read_lengths(file, 3)


@pytest.mark.parametrize("content", [{"n": 40}, [], [[5, 5]], ["a"], [[1, 2, 3]]])
def test_a_file_without_lengths_is_refused(tmp_path, content):
    file = tmp_path / "lengths.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"lengths\.json: .*expected a list of token counts"):
        pg_jobs.read_lengths(file, 1)


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_json(tmp_path, capsys):
    file = tmp_path / "out.json"
    command = "--model tiny --samples 3 --tokens 10 --rounds 1 --ways gates --json"
    pg_effect.main([*command.split(), str(file)])
    result = json.loads(file.read_text())
    assert [(row["way"], row["k"]) for row in result["rows"]][:3] == [
        (UNIT, 0),
        ("gates", 1),
        ("gates", 2),
    ]
    assert all(row["seconds"] > 0 and row["flops"] > 0 for row in result["rows"][:3])
    assert result["summary"]["FLOPs, gates K=1 / batch gradient"] <= 1.02
    assert "| gates, remat   | 2 | sample x layer |" in capsys.readouterr().out
    assert {"date", "command", "device", "versions"} <= result.keys()


def test_what_the_command_refuses(capsys):
    for arguments, message in {
        "--figure x.png": "needs --grow",
        "--samples 0": "--samples 0: at least 1",
        "--lengths no_such_file": "no_such_file",
    }.items():
        with pytest.raises(SystemExit):
            pg_effect.main(arguments.split())
        assert message in capsys.readouterr().err


def test_a_model_that_does_not_fit_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(pg_jobs, "free_bytes", lambda: 2**30)
    with pytest.raises(SystemExit):
        pg_effect.main(["--model", "7b"])
    assert "--model 7b: weights, 2 directions and a gradient need 54 GB" in capsys.readouterr().err


def test_the_figure_shows_every_way(tmp_path):
    rows = lambda b: [
        {"way": name, "k": k, "seconds": s * b, "temp": temp}
        for name, k, s, temp in [
            (UNIT, 0, 1.0, 10),
            ("jvp", 2, 1.1, 2),
            ("torch jvp", 2, 2.0, None),
        ]
    ]
    points = [{"samples": b, "rows": rows(b)} for b in (1, 8)]
    pg_report.draw(points, 2, "a title", tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.nightly
def test_memory_of_one_call_is_about_the_compilers_word():
    job = pg_jobs.random_job("small", [(64, 32)] * 4)
    ((way,),) = [c for c in pg_measure.build(job, (2,), ["jvp"])[0] if c[0].name == "jvp"]
    peak = pg_memory.peak_growth("small", [(64, 32)] * 4, pg_measure.row(way))
    assert 0.7 * way.temp < peak < 2 * way.temp
