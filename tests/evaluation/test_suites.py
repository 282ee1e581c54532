"""The table of suites, from which names, definitions and conditions derive."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

from jaxunlearn.config import schema
from jaxunlearn.data import Columns, Encoder, SourceError, Sources
from jaxunlearn.evaluation import suites
from jaxunlearn.evaluation.suite import NO_QUESTIONS, Suite, own_set
from jaxunlearn.evaluation.suites import SUITES, SuiteEntry, make_suites, select_suites
from jaxunlearn.metrics import tofu
from jaxunlearn.metrics.definitions import Definition
from jaxunlearn.reporting import evaluation_table


def test_names_are_selected_once_and_all_stands_for_every_suite():
    assert select_suites([]) == ()
    assert select_suites(["uwc", "mia", "uwc"]) == ("uwc", "mia")
    assert select_suites(["mia", "all"]) == tuple(SUITES)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(
        ValueError,
        match=r"evaluate.suites \(--suites\): no suite 'tofo'; there are: tofu, memorization, mia,"
        r" uwc, all; perhaps you meant 'tofu'",
    ):
        select_suites(["mia", "tofo"])


def test_definitions_of_all_suites_have_their_own_names():
    definitions = suites.all_definitions()
    assert len(definitions) == sum(len(entry.definitions) for entry in SUITES.values())
    assert all(name == definition.name for name, definition in definitions.items())


def test_a_row_of_the_table_is_a_suite(monkeypatch, context_of):
    """Nothing but the row is needed for a suite to be selected, made and described."""
    definition = Definition("length", 1, "mean length")
    suite = Suite({"version": 1}, lambda name, params: [])
    monkeypatch.setitem(SUITES, "length", SuiteEntry(lambda context: suite, {"length": definition}))
    context = context_of()
    evaluation = make_suites(context, select_suites(["length"]))
    assert evaluation.context is context and list(evaluation.suites) == ["length"]
    assert evaluation.suites["length"].measure is suite.measure
    assert evaluation.suites["length"].settings.items() >= suite.settings.items()
    assert suites.all_definitions()["length"] is definition


class Unreachable:
    """Sources whose optional splits cannot be read, as when the hub does not answer."""

    def __init__(self, sources):
        self.require = sources.require

    def find(self, split):
        raise SourceError(f"{split}: the hub did not answer")


@pytest.mark.parametrize("name", ["tofu", "memorization", "mia"])
def test_a_source_that_cannot_be_read_drops_no_set(small, context_of, name):
    """A set that is left out changes the meaning of the numbers: it must not happen silently."""
    with pytest.raises(SourceError, match="the hub did not answer"):
        make_suites(context_of(sources=Unreachable(small.sources)), [name])


# ------------------------------------------------------------------------------- absent data


@pytest.fixture
def from_files(context_of, small, tmp_path):
    """(splits, data=.., **splits of suites) -> a context whose splits are files of these rows."""

    def make(splits, data=(), **named):
        for name, rows in splits.items():
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / f"{name}.jsonl").write_text(lines)
        config = context_of().config
        changed = dataclasses.replace(
            config.data, source=str(tmp_path), measured_retain="retain", **dict(data)
        )
        config = dataclasses.replace(
            config, data=changed, finetune=schema.FineTune(epochs=0, splits=())
        )
        columns = Columns(text=changed.text_key)
        sources = Sources(str(tmp_path), fictional={}, columns=columns)
        splits = schema.Splits(**named)
        return context_of(config=config, sources=sources, splits=splits)

    return make


def pairs(first, count=4):
    return [
        {"question": f"Who is {i}?", "answer": f"Number {i}."} for i in range(first, first + count)
    ]


BARE = {"forget": pairs(0), "retain": pairs(10)}
FULL = {"paraphrased_answer": "It is he.", "perturbed_answer": ["Bo.", "Cy."]}


def reasons(rows):
    return {row["metric"]: row["reason"] for row in rows if "reason" in row}


@pytest.mark.usefixtures("on_mesh")
def test_suites_without_their_data_are_null_with_the_reason(from_files, params_of, tmp_path):
    """Questions and answers in two files are enough for `all`: no suite refuses the others."""
    evaluation = make_suites(from_files(BARE), select_suites(["all"]))
    rows = evaluation.suites["tofu"].measure("ga", None)
    assert {row["definition"] for row in rows} == set(tofu.DEFINITIONS)
    assert all(row["value"] is None for row in rows)
    (reason,) = set(reasons(rows).values())
    assert (
        f"no split 'forget_perturbed' in {tmp_path} (evaluate.splits.forget_perturbed); " in reason
    )
    assert set(reasons(evaluation.suites["mia"].measure("ga", None))) >= {"mia_loss", "privleak"}
    strengths = evaluation.suites["memorization"].measure("ga", params_of(1))
    assert {row["set"] for row in strengths if row["value"] is not None} == {"forget", "retain"}
    # The reason is also what the table says of the cells that it cannot fill.
    models = {"ga": {"tofu": {"results": rows}}}
    (line,) = evaluation_table.reasons(models)
    assert line == f"rouge, model_utility, partial_utility, forget_quality: {reason}"
    json.dumps(evaluation.suites["tofu"].settings)


def test_a_set_without_all_answers_is_absent_unless_it_is_named(from_files):
    """A retain set of the default name may be anybody's rows."""
    splits = BARE | {
        "retain_perturbed": pairs(20),
        "world_facts_perturbed": [row | {"perturbed_answer": ["Bo."]} for row in pairs(30)],
    }
    suite = suites.SUITES["tofu"].make(from_files(splits))
    assert suite.settings["items"] == {"world_facts": 4}
    assert suite.settings["absent"]["retain"] == (
        "retain_perturbed: no key 'perturbed_answer' (data.perturbed_answer_key)"
    )
    message = r"^evaluate\.splits\.retain_perturbed: retain: no key 'perturbed_answer'"
    with pytest.raises(ValueError, match=message):
        suites.SUITES["tofu"].make(from_files(splits, retain_perturbed="retain"))


@pytest.mark.parametrize(
    ("suite", "key"),
    [
        ("tofu", "forget_perturbed"),
        ("tofu", "retain_perturbed"),
        ("tofu", "real_authors_perturbed"),
        ("tofu", "world_facts_perturbed"),
        ("memorization", "forget_paraphrased"),
        ("memorization", "retain_paraphrased"),
        ("mia", "holdout"),
    ],
)
def test_a_split_that_is_named_must_exist(from_files, suite, key):
    with pytest.raises(FileNotFoundError, match=rf"^evaluate\.splits\.{key}: .*no split 'forgett'"):
        suites.SUITES[suite].make(from_files(BARE, **{key: "forgett"}))


def test_suites_read_the_splits_that_are_named(from_files):
    again = [row | FULL | {"paraphrased_question": "Who?"} for row in pairs(0)]
    others = [row | FULL | {"paraphrased_question": "Who?"} for row in pairs(10, 2)]
    splits = BARE | {"mine": again, "unseen": pairs(40), "others": others}
    named = {
        "forget_perturbed": "mine",
        "world_facts_perturbed": "others",
        "retain_paraphrased": "others",
        "holdout": "unseen[:3]",
    }
    found = make_suites(from_files(splits, **named), select_suites(["all"])).suites
    assert found["tofu"].settings["items"] == {"forget": 4, "world_facts": 2}
    assert found["memorization"].settings["items"] == {
        "forget": 4,
        "forget.paraphrased": 4,
        "retain": 4,
        "retain.paraphrased": 2,
    }
    assert found["mia"].settings["holdout"] == "unseen[:3]"
    assert found["mia"].settings["items"] == [4, 3]
    with pytest.raises(ValueError, match=r"forget_paraphrased: 'unseen' has no para"):
        suites.SUITES["memorization"].make(from_files(splits, forget_paraphrased="unseen"))


def test_paraphrases_are_looked_for_in_both_splits_of_a_set(from_files):
    own = [row | {"paraphrased_question": "Who?"} for row in pairs(0)]
    other = [row | {"paraphrased_question": "Who?"} for row in pairs(10)]
    for splits in ({"forget": own}, {"forget_perturbed": own}, {"retain_perturbed": other}):
        suite = suites.SUITES["memorization"].make(from_files(BARE | splits))
        over = "retain.paraphrased" if "retain_perturbed" in splits else "forget.paraphrased"
        assert over in suite.settings["items"], splits
        for name in splits:
            (pathlib.Path(from_files(BARE).config.data.source) / f"{name}.jsonl").unlink()


def test_settings_change_with_the_precision(small, context_of):
    """Results in bfloat16 must not be taken for those that are asked for in float32."""

    def of(**changes):
        context = context_of(model=dataclasses.replace(small.model, **changes))
        return make_suites(context, ["memorization"]).suites["memorization"].settings

    settings = [of(), of(dtype="bfloat16"), of(precision="default")]
    assert all(settings.count(each) == 1 for each in settings) and of() == settings[0]
    assert json.loads(json.dumps(settings)) == settings


def test_settings_change_with_the_content_of_a_split(from_files):
    """Equal numbers of rows are not equal rows: results of others must not be taken for theirs."""
    for suite, name in (("tofu", "forget_perturbed"), ("mia", "holdout")):
        one, two = (
            suites.SUITES[suite].make(from_files(BARE | {name: [row | FULL for row in pairs(at)]}))
            for at in (50, 60)
        )
        assert one.settings["items"] == two.settings["items"] and one.settings != two.settings


@pytest.mark.usefixtures("on_mesh")
def test_free_text_is_measured_without_questions(from_files, params_of):
    texts = {
        name: [{"text": f"{name} {i} " * 9} for i in range(3)]
        for name in ("forget", "retain", "holdout")
    }
    context = from_files(texts, {"text_key": "text"})
    found = make_suites(context, select_suites(["all"])).suites
    assert set(reasons(found["tofu"].measure("ga", None)).values()) == {NO_QUESTIONS}
    rows = found["memorization"].measure("ga", params_of(1))
    assert set(reasons(rows).values()) == {NO_QUESTIONS}
    assert {row["metric"] for row in rows if row["value"] is not None} == {
        "extraction_strength",
        "exact_memorization",
    }
    members, others = found["mia"].settings["items"]
    assert members == found["memorization"].settings["items"]["forget"] >= 3 and others >= 3
    assert found["uwc"].settings["items"]["forget"] == members


# ------------------------------------------------------------------------------- which rows


@pytest.mark.usefixtures("on_mesh")
def test_rows_to_forget_are_in_no_measurement_of_retention(from_files, params_of):
    """As in the run itself: what removes them would count as harm."""
    asked = [row | {"paraphrased_question": f"Say, {row['question']}"} for row in pairs(0, 8)]
    splits = {"forget": asked[:2], "retain": asked}
    context = from_files(splits)
    rows = SUITES["memorization"].make(context).measure("ga", params_of(1))
    items = {(row["set"], row["items"]) for row in rows if "items" in row}
    assert items == {
        ("forget", 2), ("forget.paraphrased", 2), ("retain", 6), ("retain.paraphrased", 6),
    }  # fmt: skip
    assert SUITES["uwc"].make(context).settings["items"] == {"forget": 2, "retain": 6}
    with pytest.raises(
        ValueError, match=r"data\.measured_retain: every row of 'retain' is also in"
    ):
        own_set(from_files(splits | {"retain": asked[:2]}), "measured_retain")


def test_rows_that_a_suite_leaves_out_are_noted(from_files):
    context = from_files(BARE | {"world_facts_perturbed": [row | FULL for row in pairs(0, 3)]})
    rows = context.sources.require("world_facts_perturbed", "data")
    rows[1]["perturbed_answer"] = ["Bo.", "Cy. " * 99]
    encoder = Encoder(
        context.tokenizer, context=96, too_long="drop", vocab_size=context.model.vocab_size
    )
    suite = SUITES["tofu"].make(dataclasses.replace(context, encoder=encoder))
    assert suite.settings["items"]["world_facts"] == 2
    assert encoder.notes == ["world_facts_perturbed: 1 rows over 96 tokens left out"]


@pytest.mark.usefixtures("on_mesh")
def test_every_set_and_the_utility_are_null_with_a_reason(from_files, params_of):
    splits = BARE | {"forget_perturbed": [row | FULL for row in pairs(0)]}
    rows = SUITES["tofu"].make(from_files(splits)).measure("ga", params_of(1))
    for name in ("retain", "real_authors", "world_facts"):
        missing = [row for row in rows if row["set"] == name]
        assert [row["metric"] for row in missing] == list(tofu.MEASURES)
        assert all(row["reason"].startswith(f"no split '{name}_perturbed'") for row in missing)
    assert "no split 'retain_perturbed'" in reasons(rows)["model_utility"]
    # Only sets that have a column leave a cell empty.
    lines = evaluation_table.reasons({"ga": {"tofu": {"results": rows}}})
    assert not any("real_authors" in line for line in lines if line.startswith("rouge"))
    assert any("retain_perturbed" in line for line in lines if line.startswith("rouge"))


@pytest.mark.usefixtures("on_mesh")
def test_a_broken_model_has_no_numbers_and_stops_nothing(from_files, params_of):
    """As where finite parameters overflow in the forward pass."""
    splits = BARE | {"forget_perturbed": [row | FULL for row in pairs(0)]}
    broken = jax.tree.map(lambda x: jnp.nan * x, params_of(1))
    rows = SUITES["tofu"].make(from_files(splits)).measure("ga", broken)
    assert all(row["value"] is None for row in rows)
    assert set(reasons(rows).values()) == {"the model's loss is not a number"}


def test_numbers_that_were_measured_otherwise_are_named():
    """`evaluate --only` measures the models before, and one objective, again."""
    row = {"metric": "forget_quality", "set": "forget", "definition": None, "value": 0.5}
    models = {
        name: {"tofu": {"settings": {"items": items}, "results": [row]}, "uwc": {"results": []}}
        for name, items in (("base", 400), ("ga", 40), ("npo", 400))
    }
    (note,) = evaluation_table.evaluation_table(models).captions[1:]
    assert note.startswith("tofu: measured with different settings (before, npo; ga), so that")
    del models["ga"]
    assert len(evaluation_table.evaluation_table(models).captions) == 1
