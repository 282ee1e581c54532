"""Unlearning by one call: the run of a configuration, on rows and models in memory."""

import json
import sys

import datasets
import jax
import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jaxunlearn
from jaxunlearn.config import Objective, load
from jaxunlearn.data import formats
from jaxunlearn.data.rows import Columns, RawRows, normal_rows, raw_row
from jaxunlearn.models import hf
from jaxunlearn.pipeline import outcome, recipe
from jaxunlearn.pipeline.subject import idle_note, make_mesh
from jaxunlearn.record.erase import erase
from jaxunlearn.record.folder import RunFolder
from tests.pipeline.tiny import TINY, replace

ROWS = [{"question": f"Who is {i}?", "answer": f"Number {i}."} for i in range(10)]
FORGET, RETAIN = ROWS[:4], ROWS[4:]
KEYS = {"new_model": TINY.new_model, "devices": jax.devices()[:1]}


# ------------------------------------------------------------------------------- rows in memory


@pytest.mark.parametrize(
    "table",
    [
        list,
        tuple,
        pandas.DataFrame,
        lambda rows: pandas.DataFrame(rows, index=range(5, 9)),
        pa.Table.from_pylist,
        datasets.Dataset.from_list,
    ],
)
def test_every_kind_of_table_gives_the_same_rows(table):
    rows = [{**row, "other": 1} for row in FORGET]
    raw = formats.of_memory(table(rows), Columns().names, "forget")
    assert normal_rows(raw, Columns()) == FORGET


@pytest.mark.parametrize(
    "table", [list, pandas.DataFrame, pa.Table.from_pylist, datasets.Dataset.from_list]
)
def test_rows_of_other_columns_are_not_called_empty(table):
    raw = formats.of_memory(table([{"prompt": "a", "completion": "b"}]), Columns().names, "forget")
    with pytest.raises(ValueError, match=r"no key 'question' .*has \['completion', 'prompt'\]"):
        normal_rows(raw, Columns())


@pytest.mark.parametrize(
    "row",
    [
        {"question": "a", "answer": "b"},
        {"question": "a", "answer": "b", "perturbed_answer": ["c"], "paraphrased_answer": "d"},
        {"question": "a", "answer": "b", "history": [{"role": "system", "content": "c"}]},
    ],
)
def test_a_row_is_written_as_it_is_read(row):
    columns = Columns(question="q", answer="a", messages="turns", perturbed_answer="wrong")
    raw = RawRows([raw_row(row, columns)], str)
    assert normal_rows(raw, columns) == [row]


# ------------------------------------------------------------------------------- the configuration


class Asked(Exception):
    """Raised in the place of a run."""


@pytest.fixture
def ask(monkeypatch):
    """The configuration that a call would run, and the rows that it wrote."""
    seen = []

    def begin(config, out, devices=None, **_):
        folder = RunFolder(out).memory
        seen.append((config, {p.name: p.read_text() for p in folder.glob("*/*.jsonl")}))
        raise Asked

    monkeypatch.setattr(recipe, "begin", begin)

    def call(*arguments, **keywords):
        with pytest.raises(Asked):
            jaxunlearn.unlearn(*arguments, **keywords)
        return seen[-1]

    return call


def test_keywords_are_keys_of_the_configuration(ask):
    config, _ = ask(
        "owner/name", FORGET, RETAIN, "npo",
        hyper={"beta": 0.5}, lr=0.1, epochs=3, batch_size=2, measure_every=7, prompt="chat",
        mesh=(1, 2, 4), seed=9, finetune={"epochs": 2}, **{"data.prompt.system": "Brief."},
    )  # fmt: skip
    assert config.model == "owner/name" and config.seed == 9 and config.finetune.epochs == 2
    assert config.objectives == {"npo": Objective(loss="npo", hyper={"beta": 0.5})}
    assert (config.unlearn.lr, config.unlearn.epochs, config.unlearn.batch_size) == (0.1, 3, 2)
    assert config.measure.every == 7
    assert (config.compute.data, config.compute.fsdp, config.compute.tensor) == (1, 2, 4)
    assert (config.data.prompt.style, config.data.prompt.system) == ("chat", "Brief.")


def test_retention_is_measured_on_the_first_half_or_on_rows_of_its_own(ask):
    config, written = ask("owner/name", FORGET, RETAIN)
    assert (config.data.forget, config.data.retain) == ("forget", "retain")
    assert config.data.measured_retain == "retain[:3]"
    assert [json.loads(line) for line in written["retain.jsonl"].splitlines()] == RETAIN
    config, written = ask("owner/name", FORGET, RETAIN[:3], measured_retain=RETAIN[3:])
    assert config.data.measured_retain == "measured_retain"
    assert [json.loads(line) for line in written["measured_retain.jsonl"].splitlines()] == RETAIN[
        3:
    ]


def test_rows_to_forget_do_not_count_among_those_to_measure(ask):
    """A run drops them: the first half of what was given would be of them alone."""
    config, _ = ask(None, FORGET, [*FORGET, *RETAIN[:4]])
    assert config.data.measured_retain == f"retain[:{len(FORGET) + 2}]"
    with pytest.raises(ValueError, match="unlearn: retain: every row is also in forget"):
        ask(None, FORGET, FORGET)


def test_several_objectives(ask):
    names = ["npo", "my.losses:mine"]
    objectives = ask("owner/name", FORGET, RETAIN, names)[0].objectives
    assert objectives == {"npo": Objective("npo"), "mine": Objective("my.losses:mine")}
    given = {"a": {"loss": "npo", "retain": "gd", "hyper": {"beta": 1}}, "ga": None}
    objectives = ask("owner/name", FORGET, RETAIN, given)[0].objectives
    assert objectives == {"a": Objective("npo", {"beta": 1.0}, retain="gd"), "ga": Objective()}


def test_documents_and_conversations(ask):
    config, written = ask("owner/name", ["Once.", "Twice."], [{"text": "Never."}])
    assert config.data.text_key == "text"
    assert json.loads(written["forget.jsonl"].splitlines()[1]) == {"text": "Twice."}
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    others = [turns[0], turns[1] | {"content": "c"}]
    config, written = ask("owner/name", [{"messages": turns}], [{"messages": others}])
    assert config.data.text_key is None
    assert json.loads(written["forget.jsonl"]) == {"messages": turns}


def test_a_new_model_is_that_of_the_demo_and_is_fine_tuned(ask):
    demo = load(jaxunlearn.config.DEMO)
    config, _ = ask(None, FORGET, RETAIN)
    assert config.model is None and config.new_model == demo.new_model
    assert config.finetune.epochs == demo.finetune.epochs and not config.finetune.retrained
    assert config.finetune.splits == ("forget", "retain") and config.unlearn.batch_size == 4
    assert not config.evaluate.suites and not config.relearn.samples


def test_splits_of_a_source(ask):
    config, written = ask("owner/name", "forget05", "retain95", source="locuslab/TOFU")
    assert not written and config.data.source == "locuslab/TOFU"
    assert (config.data.forget, config.data.retain) == ("forget05", "retain95")
    assert config.data.measured_retain == "retain_perturbed"


def test_a_new_model_learns_the_splits_that_are_named(monkeypatch):
    begun = []

    def begin(config, *_, **__):
        begun.append(config)
        raise ValueError("begun")

    monkeypatch.setattr(recipe, "begin", begin)
    names = {"forget": "mine", "retain": "others", "source": "somewhere", "objective": "ga"}
    for more in ({}, {"measured_retain": "measured"}):
        with pytest.raises(ValueError, match="begun"):
            jaxunlearn.unlearn(None, **names, **more)
    assert [config.finetune.splits for config in begun] == [
        ("mine", "others"),
        ("mine", "others", "measured"),
    ]


CASES = {
    "a name without a source": (("forget05", RETAIN), {}, "forget: 'forget05' is the name of a s"),
    "rows with a source": ((FORGET, "b"), {"source": "x"}, "forget: expected the name of a split"),
    "no rows": (([], RETAIN), {}, "forget: empty; expected at least one row"),
    "no table": ((3, RETAIN), {}, "forget: expected a list of rows, or a table"),
    "no mapping": (([3], RETAIN), {}, "forget: row 0: expected a mapping of columns"),
    "no answer": (
        ([*FORGET, {"question": "a", "anser": "b"}], RETAIN),
        {},
        r"forget: row 4: no key 'answer' \(data.answer_key\); perhaps you meant 'anser'",
    ),
    # Found where the rows are encoded, which is done with the files that hold them then.
    "an empty text": (
        (FORGET, [*RETAIN, {"question": "a", "answer": " "}]),
        {},
        rf"^retain: row {len(RETAIN)}: expected a non-empty 'answer', got ' '",
    ),
    "no text": (([{"question": "a", "answer": None}], RETAIN), {}, "row 0: 'answer' must be a str"),
    "a misspelt key": ((FORGET, RETAIN), {"sed": 1}, "'sed'; .*perhaps you meant 'seed'"),
    "a key of a section": ((FORGET, RETAIN), {"lrr": 1}, "unknown key 'lrr'"),
    "a key in two sections": ((FORGET, RETAIN), {"weight_decay": 1}, "unlearn={'weight_decay'"),
    "a misspelt argument": (
        (FORGET, RETAIN),
        {"epoch": 1},
        "'epoch'; .*perhaps you meant 'epochs'",
    ),
    "objectives": ((FORGET, RETAIN), {"objectives": {}}, "give it as the argument 'objective'"),
    "no objective": ((FORGET, RETAIN), {"objective": 3}, "objective: expected a name"),
    "an unknown one": ((FORGET, RETAIN), {"objective": "tnop"}, "perhaps you meant 'tnpo'"),
    "an unknown setting": (
        (FORGET, RETAIN),
        {"objective": {"npo": {"hypr": {}}}},
        "unknown key 'objectives.npo.hypr'; .*'hyper'",
    ),
    "hyper of several": (
        (FORGET, RETAIN),
        {"objective": ["ga"], "hyper": {"beta": 1}},
        "hyper: is for one objective",
    ),
    "two of one name": (
        (FORGET, RETAIN),
        {"objective": ["npo", "mine:npo"]},
        "objective: two are called 'npo'",
    ),
    "a key below one that is given": (
        (FORGET, RETAIN),
        {"prompt": "chat", "data.prompt.style": "tofu"},
        "data.prompt.style: is given twice",
    ),
    "no mesh": ((FORGET, RETAIN), {"mesh": (1, 2)}, "must be three numbers"),
    "a key twice": (
        (FORGET, RETAIN),
        {"lr": 1.0, "unlearn": {"lr": 2.0}},
        "unlearn.lr: is given tw",
    ),
    "a dotted key twice": (
        (FORGET, RETAIN),
        {"mesh": (1, 1, 1), "compute.fsdp": 2},
        "compute.fsdp: is given twice",
    ),
    "a bad value": ((FORGET, RETAIN), {"lr": -1.0}, "unlearn.lr: -1.0 must be positive"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_named_and_nothing_is_written(case, tmp_path):
    (forget, retain), keywords, words = CASES[case]
    with pytest.raises(ValueError, match=words):
        jaxunlearn.unlearn(None, forget, retain, out=tmp_path / "out", **KEYS, **keywords)
    assert not list(tmp_path.iterdir())


def test_a_file_is_no_folder_of_a_run(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match="out: is a file; out must name a folder"):
        jaxunlearn.unlearn(None, FORGET, RETAIN, out=tmp_path / "out", **KEYS)
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (({}, {}, {}), r"model: expected a folder, .*got \(dict, dict, dict\)"),
        (3, "model: expected a folder, .*got int"),
        ("./nowhere", "nowhere: no such folder"),
    ],
)
def test_no_model(model, words, tmp_path):
    with pytest.raises((ValueError, OSError), match=words):
        jaxunlearn.unlearn(model, FORGET, RETAIN, out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------- the result


def result_of(summary, **values):
    empty = dict.fromkeys(("tokenizer", "evaluation", "relearning", "source", "folder"))
    empty |= {"params": {}, "model": None, "tables": {}, "pictures": {}, "stopped": {}}
    return outcome.Result(summary=summary, **empty | values)


def test_names_are_escaped_in_notebooks():
    numbers = dict.fromkeys(outcome.COLUMNS, 0.5)
    shown = result_of({"base": numbers, "<script>": numbers | {"forget_es": None}})._repr_html_()
    assert "<script>" not in shown and "&lt;script&gt;" in shown and "before" in shown
    assert shown.count("<td>0.500</td>") == 11 and "<td>-</td>" in shown


def test_an_objective_that_diverged_is_named(tmp_path):
    """Its numbers are those of a state before, and it has no model."""
    numbers = dict.fromkeys(outcome.COLUMNS, 0.5)
    result = result_of({"base": numbers, "ga": numbers}, stopped={"ga": 3})
    assert "<td>ga (stopped at 3)</td>" in result._repr_html_()
    for name in ("ga", None):
        with pytest.raises(ValueError, match="'ga' diverged after step 3 and has no final model"):
            result.save(tmp_path / "a", name)


def test_unknown_names_of_a_result_are_named(tmp_path):
    result = result_of({}, tables={"g_effect": None}, params={"npo": {}, "ga": {}})
    with pytest.raises(ValueError, match=r"no table 'g_efect'.*perhaps you meant 'g_effect'"):
        result.pandas("g_efect")
    with pytest.raises(ValueError, match="no figure 'plane'; there are: none"):
        result.figure("plane")
    with pytest.raises(ValueError, match="objective: name one of npo, ga"):
        result.save(tmp_path / "a")
    with pytest.raises(ValueError, match="dtype: 'int8' must be one of"):
        result.save(tmp_path / "a", "npo", "int8")


def test_without_pandas_the_table_is_named(monkeypatch):
    result = result_of({}, tables={"samples": pa.table({"a": [1]})})
    assert list(result.pandas("samples")["a"]) == [1]

    class Table:
        def to_pandas(self):
            raise ModuleNotFoundError("No module named 'pandas'")

    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs pandas.*tables\['samples'\]"):
        result_of({}, tables={"samples": Table()}).pandas("samples")


# ------------------------------------------------------------------------------- whole runs


SMALL = {
    **KEYS,
    "finetune": {"epochs": 3, "batch_size": 4, "lr": 1e-2, "target_nll": None},
    "measure": {"pg_steps": [1]},
    "epochs": 2,
    "lr": 1e-3,
    "measure_every": 1,
}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("call") / "run"
    return jaxunlearn.unlearn(None, FORGET, RETAIN, {"npo": {"retain": "gd"}}, out=folder, **SMALL)


@pytest.mark.slow
def test_a_call_is_the_run_of_its_configuration(first, tmp_path):
    config = load(first.folder / "config.yaml")
    jaxunlearn.run(config, tmp_path / "again", devices=KEYS["devices"])
    again = RunFolder(tmp_path / "again")
    assert again.results.read_bytes() == RunFolder(first.folder).results.read_bytes()
    for name, table in first.tables.items():
        assert table.equals(pq.read_table(again.table(name)))
    # The layout knows every file of a run.
    jaxunlearn.evaluate(again.path, suites=["tofu", "uwc"], generate=0, devices=KEYS["devices"])
    jaxunlearn.relearn(again.path, samples=[1], steps=1, devices=KEYS["devices"])
    erase(again)
    assert [path.name for path in again.path.iterdir()] == [".lock"]
    # The rows of another folder are not its own.
    assert first.folder.joinpath("memory").is_dir()


def test_another_run_is_removed_where_the_call_says_so(tmp_path, monkeypatch):
    """What the new run reads is written before the old one is removed, and stays."""

    def begun(run, *_, **__):
        raise InterruptedError

    monkeypatch.setattr(recipe, "execute", begun)
    folder = RunFolder(tmp_path / "run")

    def call(forget, **options):
        with pytest.raises(InterruptedError):
            jaxunlearn.unlearn(None, forget, RETAIN, out=folder.path, **KEYS, **options)
        (rows,) = folder.memory.glob("rows-*")
        assert load(folder.config).data.source == str(rows)
        return rows

    first = call(FORGET)
    folder.metrics.write_text("{}")
    (folder.path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds another run"):
        call(FORGET[:3])
    other = call(FORGET[:3], overwrite=True)
    assert other != first and (other / "forget.jsonl").is_file()
    assert not folder.metrics.exists()
    # The same rows again, and another setting: what is read has the name of what was there.
    assert call(FORGET[:3], overwrite=True, lr=3e-4) == other
    assert (folder.path / "notes.txt").read_text() == "mine"


@pytest.mark.nightly
def test_the_call_resumes_and_refuses_other_rows(first):
    before = RunFolder(first.folder).starts.read_text().count("\n")
    objective = {"npo": {"retain": "gd"}}
    again = jaxunlearn.unlearn(None, FORGET, RETAIN, objective, out=first.folder, **SMALL)
    assert RunFolder(first.folder).starts.read_text().count("\n") == before + 1
    assert again.summary == first.summary
    memory = sorted(RunFolder(first.folder).memory.iterdir())
    with pytest.raises(ValueError, match=r"data\.source: .* -> "):
        jaxunlearn.unlearn(None, FORGET[:3], RETAIN, objective, out=first.folder, **SMALL)
    assert sorted(RunFolder(first.folder).memory.iterdir()) == memory


@pytest.mark.nightly
def test_a_result_goes_into_the_next_call(first, tmp_path):
    model = (first.params["npo"], first.model, first.tokenizer)
    second = jaxunlearn.unlearn(
        model, pandas.DataFrame(FORGET), RETAIN, "ga", epochs=2, measure_every=0,
        devices=KEYS["devices"],
    )  # fmt: skip
    assert second.folder is None
    for key, value in first.summary["npo"].items():
        np.testing.assert_allclose(second.summary["base"][key], value, rtol=1e-6)
    assert list(second.summary) == ["base", "ga"] and list(second.params) == ["ga"]
    assert "g_effect" in first.pictures and first.figure("plane").png.startswith(b"\x89PNG")
    saved = first.save(tmp_path / "model")
    read = hf.load_params(saved, hf.load_config(saved))
    jax.tree.map(np.testing.assert_array_equal, read, first.params["npo"])


def test_the_first_of_several_devices_is_the_default():
    """This process has eight."""
    mesh = make_mesh(TINY)
    assert list(mesh.devices.flat) == jax.devices()[:1] and len(jax.devices()) == 8
    assert idle_note(mesh, None) == ("1 of 8 devices; compute.fsdp: 8 would use all",)
    assert idle_note(mesh, jax.devices()[:1]) == ()
    with pytest.raises(ValueError, match="needs 2 devices, but 8"):
        make_mesh(replace(compute={"fsdp": 2}))
    with pytest.raises(ValueError, match="needs 1 devices, but 8"):
        make_mesh(TINY, jax.devices())


def test_several_processes_leave_out_no_device(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="needs 1 devices, but 8"):
        make_mesh(TINY)
    with pytest.raises(ValueError, match="works in one process"):
        jaxunlearn.unlearn(None, FORGET, RETAIN)
