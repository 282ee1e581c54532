"""The page: its data, its verdicts, its charts, and that data never become a part of the page."""

import html.parser
import json
import re
from pathlib import Path

import numpy as np
import pytest

from jaxunlearn.record.texts import SampleText
from jaxunlearn.reporting import page as pages
from jaxunlearn.reporting import palette
from jaxunlearn.reporting.page import content
from jaxunlearn.reporting.page.verdicts import verdict
from tests.reporting.pages import HOSTILE, attack, attacks_of, make_source, page_tables, result
from tests.reporting.synthetic import GROUPS

altair = pytest.importorskip("altair", reason="needs the extra report")
vl_convert = pytest.importorskip("vl_convert", reason="needs the extra report")
render = pytest.importorskip("jaxunlearn.reporting.page.render").render
charts = pytest.importorskip("jaxunlearn.reporting.page.charts")


@pytest.fixture(scope="module")
def page():
    return render(make_source())


def payload_of(page):
    text = re.search(r'id="payload">(.*?)</script>', page, re.S)[1]
    return json.loads(text)


class Outline(html.parser.HTMLParser):
    """What a browser's parser finds: tags, and the text outside scripts."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.inside = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside.append(tag)

    def handle_endtag(self, tag):
        if tag in self.inside:
            while self.inside.pop() != tag:
                pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self.inside):
            self.text.append(data)


def test_text_from_data_stays_text(page):
    outline = Outline(page)
    assert [tag for tag, _ in outline.tags].count("script") == 3  # data, library, the page's own
    text = "".join(outline.text)
    for place in ("h1", "title"):
        assert place in [tag for tag, _ in outline.tags]
    # In the title, in tables, in the configuration, in generated answers.
    assert text.count('</script><script>document.title="owned"</script>') >= 5
    assert payload_of(page)["texts"]["0"]["question"] == HOSTILE


def test_nothing_is_loaded_from_elsewhere(page):
    outline = Outline(page)
    for tag, attributes in outline.tags:
        assert "src" not in attributes
        assert tag != "link"
    policy = next(a["content"] for t, a in outline.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


def test_it_is_a_pure_function(page):
    assert render(make_source()) == page


def test_every_chart_has_its_place_and_a_description(page):
    outline = Outline(page)
    places = {a["data-chart"]: a for t, a in outline.tags if a.get("class") == "chart"}
    found = payload_of(page)["charts"]
    assert set(places) == set(found) == {
        *("pareto", "effects", "layers", "plane", "profile", "changes", "risks", "relearning")
    }  # fmt: skip
    for attributes in places.values():
        assert len(attributes["aria-label"]) > 20


def test_every_chart_is_valid_and_draws(page):
    payload = payload_of(page)
    rows = {
        name: [dict(zip(d["columns"], row, strict=True)) for row in d["rows"]]
        for name, d in payload["data"].items()
    }
    rows["profile"] = [{"layer": "embed", "risk": "Dᵤ", "value": -1.0}]
    for key, chart in payload["charts"].items():
        altair.Chart.from_dict(chart["spec"])  # raises where the schema is not met
        drawn = vl_convert.vegalite_to_svg({**chart["spec"], "datasets": rows})
        assert drawn.count("<path") > 5, key


def test_without_measurements_the_page_has_what_there_is():
    tables = {"meta": {"groups": {}, "warning": "little to forget"}}
    bare = make_source(tables)._replace(attacks=None, generated={}, texts=[], starts=[])
    page = render(bare)
    assert set(payload_of(page)["charts"]) == {"pareto"}
    assert "little to forget" in page and 'id="generations"' not in page


# --------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("ends", "removed", "retained"),
    [((0.25, 0.5), True, False), ((0.3, 0.95), True, True), ((0.9, 0.95), False, True)],
)
def test_a_verdict_compares_with_the_retrained_model(ends, removed, retained):
    models = {"base": result(1.0, 1.0), "retrained": result(0.2, 1.0), "ga": result(*ends)}
    found = verdict("ga", models, None)
    assert (found.removed, found.retained) == (removed, retained)
    assert f"forget ES 1.00 to {ends[0]:.2f})" in found.sentence


@pytest.mark.parametrize(
    ("forget_es", "words"),
    [(0.1, "less than"), (0.16, "about what"), (0.24, "about what"), (0.3, "more than")],
)
def test_a_verdict_says_how_near_the_retrained_model_is(forget_es, words):
    models = {"base": result(1.0, 1.0), "retrained": result(0.2, 1.0), "ga": result(forget_es, 1.0)}
    assert f"{words} a model has that never saw it (0.20)" in verdict("ga", models, None).sentence


def test_a_verdict_says_what_cannot_be_said():
    nothing = {"base": result(0.001, 1.0), "ga": result(0.0, 1.0)}
    assert verdict("ga", nothing, None).removed is None
    stopped = {"base": result(1.0, 1.0), "ga": result(0.0, 0.0, steps=3)}
    assert verdict("ga", stopped, None).sentence.startswith("Stopped after step 3 of 62")


@pytest.mark.parametrize(
    ("step", "words"),
    [(1, "1 step of fine-tuning on 5"), (7, "7 steps of"), (None, "20 steps of fine-tuning on 5")],
)
def test_a_verdict_tells_of_relearning(step, words):
    models = {"base": result(1.0, 1.0), "ga": result(0.2, 1.0)}
    found = {"int8": attack(1, 0), "5": attack(step)}
    assert words in verdict("ga", models, attacks_of(**found)).sentence
    # Not every step was evaluated.
    sentence = verdict("ga", models, attacks_of(steps=500, **found)).sentence
    assert (f"at most {words}" if step else words) in sentence


def test_a_verdict_says_on_what_a_model_was_fine_tuned():
    models = {"base": result(1.0, 1.0), "ga": result(0.2, 1.0)}
    benign = attacks_of(benign=attack(3, 2))
    words = "3 steps of fine-tuning on data to retain bring half of it back"
    assert words in verdict("ga", models, benign).sentence
    benign["models"]["ga"]["attacks"]["5"] = attack(4, 5)
    assert "4 steps of fine-tuning on 5 forget samples" in verdict("ga", models, benign).sentence


# --------------------------------------------------------------------------- data


def test_groups_add_up_to_the_total():
    data = content.effects(page_tables()["g_effect"], GROUPS)
    at = {tuple(row[:4]): row[4] for row in data.rows}
    parts = sum(at["npo", "retain", 10, group] for group in GROUPS)
    assert parts == pytest.approx(at["npo", "retain", 10, "total"], rel=1e-3)


def test_shares_of_layers_have_the_sign_of_the_effect_and_add_up_to_one():
    data = content.layers(page_tables()["g_effect"])
    shares = [r[5] for r in data.rows if r[:3] == ["ga", "unlearn", 30]]
    assert sum(map(abs, shares)) == pytest.approx(1, abs=1e-3)
    assert all(share < 0 for share in shares)


def test_points_join_both_risks_and_profiles_leave_the_total_out():
    tables = page_tables(samples=4)
    points = content.points(tables["pg_effect"])
    assert len(points.rows) == 2 * 5 * 4 and None not in points.rows[0][3:]
    profiles = content.profiles(tables["pg_effect"])
    assert {row[3] for row in profiles.rows} == {"embed", "block_0"}


def test_profiles_count_a_layer_once_that_has_rows_of_its_own_and_of_its_tensors():
    rows = [("block_0", 6.0), ("block_0.q.kernel", 4.0), ("block_0.k.kernel", 2.0)]
    rows += [("block_1.q.kernel", 1.0), ("block_1.k.kernel", 2.0), ("total", 9.0)]
    names, values = zip(*rows, strict=True)
    constant = {"objective": "ga", "step": 0, "sample": 0, "risk": "unlearn"}
    table = {"layer": names, "value": values} | {k: [x] * len(rows) for k, x in constant.items()}
    assert [row[3:5] for row in content.profiles(table).rows] == [["block_0", 6], ["block_1", 3]]


def test_many_samples_are_thinned_out(monkeypatch):
    tables = page_tables(samples=20)
    rows = {row[:3]: row for row in map(tuple, content.points(tables["pg_effect"]).rows)}
    kept = content.kept_samples(tables["pg_effect"], tables["token_effect"], 50)
    # 200 rows of the plane and 400 of profiles are to become 50.
    assert kept.points == [0, 4, 9, 14, 19] and kept.of == 20
    assert len(kept.details) == 2 and set(kept.details) < set(kept.points)
    monkeypatch.setattr(content, "MOST_ROWS", 50)
    page = render(make_source(tables))
    data = payload_of(page)["data"]
    assert {row[2] for row in data["points"]["rows"]} == set(kept.points)
    for name in ("profiles", "tokens"):
        assert {row[2] for row in data[name]["rows"]} == set(kept.details)
    # What is left is as it was.
    assert all(rows[tuple(row[:3])][3:6] == tuple(row[3:6]) for row in data["points"]["rows"])
    assert "5 of 20 samples, evenly spaced, are in the page" in page
    assert "2 of 20 samples, evenly spaced, are in the page" in page


def test_all_samples_are_shown_where_they_fit():
    tables = page_tables(samples=20)
    kept = content.kept_samples(tables["pg_effect"], tables["token_effect"], 10_000)
    assert kept.points == kept.details == list(range(20))
    assert content.kept_samples({}, {}, 50) == content.Kept([], [], 0)


def test_labels_avoid_points_and_one_another():
    points = [(0.5, 0.5), (0.51, 0.5), (0.52, 0.5), (0.0, 0.0), (1.0, 1.0)]
    labels = ["first", "second", "third", "low", "high"]
    sides = content.label_sides(labels, points)
    assert len(set(sides[:3])) == 3
    assert content.label_sides(["alone"], [(0.3, 0.3)]) == ["ne"]


def test_colours_stand_out_on_both_papers():
    """WCAG 2.1, 1.4.11: 3 to 1 for what is no text."""
    papers = re.findall(r"--paper: (#[0-9a-f]{6})", page_file("report.css"))
    assert len(papers) == 2
    marks = (*palette.OBJECTIVES, *palette.RISKS.values(), *palette.WEIGHT_BINS, palette.CHOSEN)
    for color in (*marks, palette.OTHER):
        for paper in papers:
            assert contrast(color, paper) >= 3.0, (color, paper)


def contrast(one, other):
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def luminance(color):
    shares = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return sum(f * x for f, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def page_file(name):
    return (Path(pages.__file__).parent / name).read_text(encoding="utf-8")


def test_tokens_are_lists_in_the_order_of_positions():
    data = content.tokens(page_tables()["token_effect"])
    row = data.rows[0]
    assert row[3] == [-0.1, -0.2, -0.3] and row[5] == [0.5, 0.6, 0.7]


def test_what_is_not_finite_is_null():
    table = {"objective": ["a"], "risk": ["unlearn"], "step": [0], "layer": ["total"]}
    data = content.effects(table | {"value": [float("nan")]}, {})
    assert data.rows[0][-1] is None


def test_without_the_extra_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "LIBRARIES", ("a_package_that_does_not_exist",))
    pages.write(make_source(), tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_the_page_names_models_that_stopped_early():
    words = "Stopped early, as the loss was no longer finite"
    source = make_source()
    assert words not in render(source)
    models = source.models | {"npo": result(0.9, 0.95, steps=12)}
    assert f"{words}: npo." in render(source._replace(models=models))


def test_the_page_is_whole_and_small(tmp_path):
    pages.write(make_source(), tmp_path / "report.html")
    assert 800_000 < (tmp_path / "report.html").stat().st_size < 2_000_000


@pytest.mark.slow
def test_the_page_of_a_large_run_is_small():
    """4,000 samples at 13 checkpoints in 32 layers: 3.4 million rows."""
    samples, steps, layers = 4000, range(0, 65, 5), [f"block_{i}" for i in range(32)]
    names = ["total", *layers]
    place = np.indices((len(steps), samples, len(names), 2)).reshape(4, -1)
    count = place.shape[1]
    tables = page_tables()
    tables["pg_effect"] = {
        "objective": ["npo"] * count,
        "step": (5 * place[0]).tolist(),
        "sample": place[1].tolist(),
        "layer": [names[i] for i in place[2].tolist()],
        "risk": [("unlearn", "retain")[i] for i in place[3].tolist()],
        "value": np.random.default_rng(0).normal(size=count).tolist(),
        "weight": (place[1] / samples).tolist(),
    }
    texts = [
        SampleText("forget", i, f"question {i} " + "word " * 30, "word " * 60, ["token "] * 60)
        for i in range(samples)
    ]
    page = render(make_source(tables)._replace(texts=texts))
    assert len(page.encode()) < 15e6
    data = payload_of(page)["data"]
    # As many samples as fit, each at all checkpoints.
    assert len(data["points"]["rows"]) == len(steps) * (content.MOST_ROWS // len(steps))
    assert len(data["profiles"]["rows"]) == len(steps) * 32 * (
        content.MOST_ROWS // len(steps) // 32
    )


def test_lines_of_one_colour_have_dashes_of_their_own():
    names = [f"npo{i}" for i in range(12)]
    assert "strokeDash" not in charts._line(names[:10])
    scales = [channel.to_dict()["scale"]["range"] for channel in charts._line(names).values()]
    assert len(set(scales[0])) == 10
    assert len({(color, *dash) for color, dash in zip(*scales, strict=True)}) == 12
