"""Tables survive a round trip and a crash, and name what they hold."""

import inspect
import typing

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxunlearn.core import files
from jaxunlearn.record import tables
from jaxunlearn.record.folder import RunFolder
from jaxunlearn.record.texts import SampleText


def confidence(value, statistic="mean"):
    return {"statistic": statistic, "log10_inverse": value}


def write(run, objective, step, *values):
    rows = [confidence(value) for value in values]
    tables.write_part(run, "confidence", objective, step, rows)


def steps_of(run, objectives):
    tables.merge(run, objectives)
    table = tables.read(run, "confidence")
    return list(zip(table["objective"], table["step"], table["log10_inverse"], strict=True))


class TestRoundTrip:
    def test_parts_are_merged_by_objective_then_step(self, tmp_path):
        write(tmp_path, "npo", 10, 3.0)
        write(tmp_path, "npo", 2, 1.0, 2.0)
        write(tmp_path, "ga", 2, 4.0)
        assert steps_of(tmp_path, ["npo", "ga"]) == [
            ("npo", 2, 1.0), ("npo", 2, 2.0), ("npo", 10, 3.0), ("ga", 2, 4.0),
        ]  # fmt: skip

    def test_steps_of_any_length_are_in_order(self, tmp_path):
        for step in (2_000_000, 999_999, 1_000_000):
            write(tmp_path, "ga", step, float(step))
        steps = [step for _, step, _ in steps_of(tmp_path, ["ga"])]
        assert steps == [999_999, 1_000_000, 2_000_000]

    def test_a_part_that_is_written_again_replaces_the_first(self, tmp_path):
        write(tmp_path, "ga", 0, 1.0)
        write(tmp_path, "ga", 0, 2.0)
        assert steps_of(tmp_path, ["ga"]) == [("ga", 0, 2.0)]

    def test_columns_that_a_row_lacks_are_null(self, tmp_path):
        row = {"risk": "unlearn", "layer": "total", "value": -0.1}
        tables.write_part(tmp_path, "g_effect", "ga", 0, [row])
        tables.merge(tmp_path, ["ga"])
        table = tables.read(tmp_path, "g_effect")
        assert list(table) == tables.SCHEMAS["g_effect"].names
        assert (table["value"], table["cosine"], table["lr"]) == ([-0.1], [None], [None])

    def test_pg_effects_of_totals_layers_and_tensors_share_a_table(self, tmp_path):
        names = ["total", "block_0", "block_0.q.kernel"]
        rows = [{"sample": 0, "layer": name, "risk": "unlearn", "value": 1.0} for name in names]
        tables.write_part(tmp_path, "pg_effect", "ga", 0, rows)
        tables.merge(tmp_path, ["ga"])
        assert tables.read(tmp_path, "pg_effect")["layer"] == names

    def test_a_table_that_is_not_there_has_empty_columns(self, tmp_path):
        tables.merge(tmp_path, ["ga"])
        assert not list(tmp_path.iterdir())
        names = tables.SCHEMAS["samples"].names
        assert tables.read(tmp_path, "samples") == {name: [] for name in names}

    def test_a_table_of_other_columns_is_refused(self, tmp_path):
        file = RunFolder(tmp_path).table("confidence")
        pq.write_table(pa.table({"step": [0]}), file)
        with pytest.raises(ValueError, match=r"confidence\.parquet: expected columns \['step', "):
            tables.read(tmp_path, "confidence")


class TestCrash:
    def test_parts_after_the_checkpoint_are_dropped(self, tmp_path):
        for objective in ("npo", "ga"):
            for step in (0, 2, 4):
                write(tmp_path, objective, step, float(step))
        tables.drop_parts(tmp_path, "npo", 2)
        expected = [("npo", 0, 0.0), ("ga", 0, 0.0), ("ga", 2, 2.0), ("ga", 4, 4.0)]
        assert steps_of(tmp_path, ["npo", "ga"]) == expected

    def test_all_tables_are_dropped(self, tmp_path):
        row = {"sample": 0, "layer": "total", "risk": "unlearn", "value": 1.0}
        tables.write_part(tmp_path, "pg_effect", "ga", 4, [row])
        write(tmp_path, "ga", 4, 1.0)
        tables.drop_parts(tmp_path, "ga", 4)
        assert not list(RunFolder(tmp_path).all_parts.rglob("*.parquet"))

    def test_nothing_to_drop(self, tmp_path):
        tables.drop_parts(tmp_path, "ga", 0)

    def test_a_part_that_was_never_whole_is_ignored(self, tmp_path):
        write(tmp_path, "ga", 0, 1.0)
        torn = RunFolder(tmp_path).parts("confidence") / ".ga-000002.parquet.0a1b.tmp"
        torn.write_bytes(b"PAR1 cut sho")
        tables.drop_parts(tmp_path, "ga", 2)
        assert steps_of(tmp_path, ["ga"]) == [("ga", 0, 1.0)]
        write(tmp_path, "ga", 2, 3.0)
        assert steps_of(tmp_path, ["ga"]) == [("ga", 0, 1.0), ("ga", 2, 3.0)]
        files.remove_unfinished(tmp_path)
        assert not torn.exists() and steps_of(tmp_path, ["ga"])[1:] == [("ga", 2, 3.0)]

    def test_a_failed_write_leaves_the_old_part(self, tmp_path, monkeypatch):
        write(tmp_path, "ga", 0, 1.0)

        def half(table, path):
            path.write_bytes(b"PAR1")
            raise OSError("no space left")

        monkeypatch.setattr(pq, "write_table", half)
        with pytest.raises(OSError, match="no space left"):
            write(tmp_path, "ga", 0, 2.0)
        monkeypatch.undo()
        assert steps_of(tmp_path, ["ga"]) == [("ga", 0, 1.0)]

    @pytest.mark.parametrize("other", ["npo-gd", "npo-000001", "npo2", "xnpo"])
    def test_a_name_that_begins_another_is_not_taken_for_it(self, tmp_path, other):
        write(tmp_path, "npo", 2, 1.0)
        write(tmp_path, other, 2, 2.0)
        assert steps_of(tmp_path, ["npo"]) == [("npo", 2, 1.0)]
        tables.drop_parts(tmp_path, "npo", 0)
        assert steps_of(tmp_path, [other]) == [(other, 2, 2.0)]


class TestSchemas:
    @pytest.mark.parametrize("name", tables.SCHEMAS)
    def test_every_column_is_documented(self, name):
        row = tables._ROWS[name]
        doc = inspect.cleandoc(row.__doc__)  # Python 3.13 strips the indentation itself
        assert f"A row of `{name}`" in doc
        for column in typing.get_type_hints(row):
            assert f"\n  {column}: " in doc, column
        assert f"| `{name}` |" in tables.__doc__ and row.__name__ in tables.__doc__

    @pytest.mark.parametrize("name", tables.SCHEMAS)
    def test_types_are_those_of_the_files(self, name):
        kinds = {pa.int32(), pa.float64(), pa.string()}
        schema = tables.SCHEMAS[name]
        assert set(schema.types) <= kinds and schema.names[:2] == ["step", "objective"]

    def test_figures_need_columns_that_there_are(self):
        others = {"texts": SampleText._fields}
        for name, columns in tables.FIGURE_COLUMNS.items():
            if name != "relearn":  # its records are JSON lines
                assert set(columns) <= set(others.get(name) or tables.SCHEMAS[name].names)
