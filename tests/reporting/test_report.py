"""A report on a small run that is written by hand: its tables, names, warnings and figures."""

import dataclasses
import io

import pytest
from rich.console import Console

from jaxunlearn.config import Config, Objective, reader, schema
from jaxunlearn.core import files
from jaxunlearn.metrics.relearning import Settings
from jaxunlearn.record import attack_results, tables
from jaxunlearn.record.folder import BASE, RETRAINED, RunFolder
from jaxunlearn.reporting import evaluation_table, page, relearn_table, report, summary, terminal
from jaxunlearn.reporting.terminal import TextTable

CONFIG = Config(name="demo [red]", objectives={"npo": Objective(), "ga": Objective()})
NUMBERS = {"forget_nll": 0.048, "forget_es": 0.963, "retain_nll": 0.036, "retain_es": 0.968}
ES = ("extraction_strength", "extraction_strength.suffix")


def write_run(out, config=CONFIG, base=NUMBERS):
    """The files that a finished run leaves, of four models."""
    folder = RunFolder(out)
    finished = NUMBERS | {"steps": 4, "of_steps": 4}
    models = {BASE: base, RETRAINED: NUMBERS, "npo": finished, "ga": finished | {"steps": 2}}
    files.write_text(folder.config, reader.dump(config))
    files.write_json(folder.results, {"models": models})
    for stage in (BASE, RETRAINED, "npo", "npo"):
        files.append(folder.timings, {"stage": stage, "seconds": 7.4})
    effect = {"risk": "unlearn", "layer": "total", "reduction": "sequence_sum"}
    effect["precision"] = "float32 highest"
    tables.write_part(out, "g_effect", "npo", 0, [effect | {"value": -5432.0}])
    tables.write_part(out, "g_effect", "npo", 2, [effect | {"value": 20.0}])
    tables.merge(out, ["npo", "ga"])
    return out


def write_evaluation(out):
    metric = {"metric": ES[0], "definition": ES[1], "set": "forget", "version": 1}
    models = {
        name: {"memorization": {"results": [metric | {"value": value}]}}
        for name, value in (("ga", 0.0004), (RETRAINED, 0.3), (BASE, 0.963))
    }
    models["ga"]["uwc"] = {"results": [], "reason": "the parameters are [not] finite"}
    files.write_json(RunFolder(out).evaluation, {"models": models})


def write_attacks(out, attacks=("5",)):
    for model in (BASE, "npo"):
        for attack in ("int8",) if model == BASE else (*attacks, "int8"):
            records = [
                {
                    "model": model, "attack": attack, "samples": 5, "step": step,
                    "forget_nll": 1.0, "forget_es": es, "unseen_es": es, "effect": 1.0,
                }
                for step, es in enumerate((0.1, 0.8))
            ]  # fmt: skip
            before = {"forget_es": 0.963, "unseen_es": 0.963}
            settings = attack_results.key(Settings(1, 0.1, 2), attack, ())
            part = {"settings": settings, "before": before, "records": records, "layers": []}
            files.write_json(RunFolder(out).attack(model, attack), part)
    attack_results.write_tables(RunFolder(out), CONFIG, Settings(1, 0.1, 2))


def report_of(out):
    console = Console(file=io.StringIO(), width=80)
    report.write_report(out, console)
    return console.file.getvalue()


class TestSummary:
    def test_rows_are_named_as_people_read_them(self, tmp_path):
        results, config = summary.read_run(write_run(tmp_path))
        table = summary.summary_table(tmp_path, results)
        numbers = ("0.048", "0.963", "0.036", "0.968")
        assert table.rows == [
            ("before", *numbers, "-", "-", "7"),
            ("retrained", *numbers, "-", "-", "7"),
            ("npo", *numbers, "-5.4e3 (0)", "-", "15"),
            ("ga (stopped at 2)", *numbers, "-", "-", "-"),
        ]
        assert config == CONFIG

    def test_effects_at_their_peak_and_at_the_end(self, tmp_path):
        table = summary.effects_table(write_run(tmp_path))
        assert table.rows == [("npo", "-5.4e3 (0)", "20 (2)", "-", "-")]
        assert table.captions[0].endswith("Reduction and precision: sequence_sum, float32 highest.")

    def test_no_run(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no finished run here \(config.yaml is miss"):
            report.write_report(tmp_path)
        files.write_text(RunFolder(tmp_path).config, reader.dump(CONFIG))
        with pytest.raises(FileNotFoundError, match=r"\(results.json is missing\)"):
            report.write_report(tmp_path)


@pytest.mark.parametrize(
    ("samples", "epochs", "warmup", "steps"), [(20, 12, 1.0, 5), (20, 1, 3.0, 5), (20, 1, 0.0, 0)]
)
def test_the_warm_up_is_that_of_the_configuration(samples, epochs, warmup, steps):
    unlearn = schema.Unlearn(epochs=epochs, batch_size=4, warmup_epochs=warmup)
    assert report._warm_up(Config(unlearn=unlearn), samples) == steps
    assert report._warm_up(Config(unlearn=unlearn), 0) is None


class TestReport:
    def test_without_an_evaluation(self, tmp_path):
        said = report_of(write_run(tmp_path))
        assert "demo [red]" in said and "demo [red]:" not in said and "warning" not in said
        assert f"3 figures in {RunFolder(tmp_path).figures}" in said.replace("\n", "")
        written = RunFolder(tmp_path).summary.read_text()
        assert written.startswith("## demo [red]: summary\n\n| objective | forget NLL |")

    def test_nothing_is_printed_by_default(self, tmp_path, capsys):
        report.write_report(write_run(tmp_path))
        assert capsys.readouterr().out == ""
        assert "peak e_u" in RunFolder(tmp_path).summary.read_text()

    def test_no_page_is_named_that_an_earlier_report_wrote(self, tmp_path, monkeypatch):
        assert "report.html" in report_of(write_run(tmp_path)).replace("\n", "")
        monkeypatch.setattr(page, "LIBRARIES", ("a_package_that_does_not_exist",))
        said = report_of(tmp_path)
        assert page.MISSING in said and f"report: {tmp_path}" not in said

    def test_a_model_that_never_knew_the_data_is_warned_of(self, tmp_path):
        said = report_of(write_run(tmp_path, base=NUMBERS | {"forget_es": 0.1}))
        assert "warning: little to forget: the starting model's forget ES is 0.10" in said

    def test_the_evaluation_in_the_order_of_the_configuration(self, tmp_path):
        write_evaluation(write_run(tmp_path))
        said = report_of(tmp_path)
        last = said[said.index("demo [red]:") :]  # the title is wider than the table
        rows = [line.split() for line in last.splitlines() if line.startswith(" ")]
        rows = [row for row in rows if row and row[0] in ("before", "retrained", "ga", "base")]
        assert rows == [["before", "0.963"], ["retrained", "0.300"], ["ga", "4e-04"]]
        assert "uwc: the parameters are [not] finite" in last
        assert "| before | 0.963 |" in RunFolder(tmp_path).summary.read_text()

    def test_a_single_attack_is_a_column_and_several_are_a_table(self, tmp_path):
        write_evaluation(write_run(tmp_path))
        write_attacks(tmp_path)
        assert "5 shown" not in report_of(tmp_path)
        write_attacks(tmp_path, ("5", "all"))
        said = report_of(tmp_path)
        assert "5 shown" in said and "int8 ES" in said
        assert RunFolder(tmp_path).figures.joinpath("relearn.png").exists()

    def test_cuts_without_layers_are_no_error(self, tmp_path):
        measure = dataclasses.replace(CONFIG.measure, layer_cuts=(1, 2))
        config = dataclasses.replace(CONFIG, measure=measure)
        assert "3 figures" in report_of(write_run(tmp_path, config))

    def test_layers_and_tensors_are_drawn(self, tmp_path):
        out = write_run(tmp_path)
        rows = [
            {"sample": 0, "layer": layer, "risk": risk, "value": 1.0, "weight": 0.5}
            for layer in ("total", "embed", "block_0.q.kernel", "block_0.k.kernel")
            for risk in ("unlearn", "retain")
        ]
        tables.write_part(out, "pg_effect", "npo", 2, rows)
        tables.merge(out, ["npo", "ga"])
        report_of(out)
        assert RunFolder(out).figures.joinpath("pg_layers_npo.png").exists()


class TestRelearnTable:
    def test_one_row_per_model_one_column_per_attack(self, tmp_path):
        write_attacks(write_run(tmp_path), ("all", "5"))
        table = relearn_table.relearn_table(attack_results.read(tmp_path))
        assert table.columns == ("model", "NLL", "ES", "5 shown", "all", "int8 ES")
        assert table.rows == [
            ("before", "1.000", "0.100", "-", "-", "0.800"),
            ("npo", "1.000", "0.100", "1 (1)", "1", "0.800"),
        ]

    def test_its_figure_leaves_rounding_out(self, tmp_path):
        write_attacks(write_run(tmp_path))
        attacks = attack_results.read(tmp_path)
        drawn = relearn_table.figure_tables(tmp_path, CONFIG, attacks)
        assert set(drawn["relearn"]["attack"]) == {"5"}
        assert drawn["meta"]["before"] == 0.1 and drawn["meta"]["models"][-1] == RETRAINED


class TestTextTables:
    def test_names_and_titles_are_text_and_not_markup(self):
        table = TextTable(("model", "best [red]x"), [("[bold]npo", "1")], ("see [link]",))
        said = io.StringIO()
        Console(file=said, width=80).print(terminal.rich_table(table, "a [b] c"))
        for word in ("[bold]npo", "[red]x", "see [link]", "a [b] c"):
            assert word in said.getvalue()

    def test_the_last_word_of_a_head_is_on_its_second_line(self):
        table = TextTable(("model", "peak e_u (step)"), [("npo", "1")])
        heads = [column.header for column in terminal.rich_table(table, "t").columns]
        assert heads == ["model", "peak e_u\n(step)"]
        one_line = terminal.rich_table(table, "t", two_line_heads=False)
        assert one_line.columns[1].header == "peak e_u (step)"

    def test_first_column_is_left(self):
        table = TextTable(("program", "batch", "calls"), [("a", "b", "c")])
        rich = terminal.rich_table(table, "t", left_aligned=("batch",))
        assert [column.justify for column in rich.columns] == ["left", "left", "right"]

    def test_empty_columns_are_left_out(self):
        table = evaluation_table.evaluation_table({BASE: {}})
        assert table == TextTable(("model",), [("before",)], ())
