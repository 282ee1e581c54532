"""The membership suite: what it compares, and that held-out rows are held out."""

import dataclasses
import json

import numpy as np
import pytest

from jaxunlearn.config import schema
from jaxunlearn.data import Sources
from jaxunlearn.evaluation import membership
from jaxunlearn.evaluation.suite import NO_RETRAINED
from jaxunlearn.metrics import privacy

ROWS = [
    {"question": f"Who is {name}?", "answer": f"{name} writes."} for name in ("Ana", "Bo", "Cy")
]


@pytest.fixture
def from_files(context_of, tmp_path):
    """(epochs, splits) -> a context whose splits are files of these rows."""

    def make(epochs, **splits):
        for name, rows in splits.items():
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / f"{name}.jsonl").write_text(lines)
        config = context_of().config
        config = dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, source=str(tmp_path)),
            finetune=schema.FineTune(epochs=epochs, splits=("full",)),
        )
        return context_of(config=config, sources=Sources(str(tmp_path), fictional={}))

    return make


@pytest.mark.parametrize("split", ["forget", "full"])
def test_held_out_rows_must_be_unseen(from_files, split):
    other = {"forget": ROWS[:1], "full": ROWS[:1]} | {split: ROWS[:2]}
    context = from_files(1, **other)
    with pytest.raises(ValueError, match=r"holdout:1: the row is also in the data .*Who is Bo\?"):
        membership.check_unseen(context, [ROWS[2], ROWS[1]], "holdout")
    membership.check_unseen(context, ROWS[2:], "holdout")


def test_data_that_cannot_be_compared_with_are_an_error(from_files):
    """A check against rows that are not there would pass whatever the held-out rows are."""
    with pytest.raises(FileNotFoundError, match=r"finetune.splits: .*no split 'full'"):
        membership.check_unseen(from_files(1, forget=ROWS[:1]), ROWS[1:], "holdout")


def test_a_model_that_was_given_needs_no_fine_tuning_data(from_files):
    membership.check_unseen(from_files(0, forget=ROWS[:1]), ROWS[1:], "holdout")
    context = from_files(0, forget=ROWS[:1], full=ROWS[:2])  # which are compared where they are
    with pytest.raises(ValueError, match="holdout:0"):
        membership.check_unseen(context, ROWS[1:], "holdout")


def test_held_out_rows_must_not_be_those_of_a_retain_term(from_files):
    context = from_files(0, forget=ROWS[:1], retain=ROWS[1:], measured=ROWS[2:])
    data = dataclasses.replace(context.config.data, retain="retain", measured_retain="measured")
    terms = {
        "npo": schema.Objective(),
        "npo_gd": schema.Objective(loss="npo", retain="gd"),
        "guided": schema.Objective(),  # its weights are computed from these rows
    }
    for names, stops in ((["npo"], False), (["npo", "npo_gd"], True), (["guided"], True)):
        objectives = {name: terms[name] for name in names}
        config = dataclasses.replace(context.config, data=data, objectives=objectives)
        changed = dataclasses.replace(context, config=config)
        membership.check_unseen(changed, ROWS[2:], "holdout")  # measured, and never drawn
        if stops:
            with pytest.raises(ValueError, match=r"holdout:0: .*retain terms"):
                membership.check_unseen(changed, ROWS[1:], "holdout")
        else:
            membership.check_unseen(changed, ROWS[1:], "holdout")


def test_a_contaminated_split_stops_the_suite(from_files):
    context = from_files(1, forget=ROWS[:1], full=ROWS, holdout=ROWS[1:])
    with pytest.raises(ValueError, match="holdout:0: the row is also in the data"):
        membership.mia_suite(context)


def test_without_held_out_rows_every_number_has_the_reason(from_files, tmp_path):
    suite = membership.mia_suite(from_files(1, forget=ROWS[:1], full=ROWS))
    rows = suite.measure("ga", None)
    assert [row["definition"] for row in rows] == list(privacy.DEFINITIONS)
    assert {row["reason"] for row in rows} == {
        f"no split 'holdout' in {tmp_path}: give one, rows like the forget set's that no model"
        " of the run was trained on (evaluate.splits.holdout)"
    }
    assert suite.settings["holdout"] is None


def test_scores_are_split_where_the_held_out_set_begins():
    rng = np.random.default_rng(0)
    signals = membership.Signals(
        logp=-rng.random((5, 4)), mu=-rng.random((5, 4)), sigma=rng.random((5, 4)),
        norms=np.arange(5.0) + 1, tensor_norms=np.arange(5.0) + 1,
    )  # fmt: skip
    texts = membership.Texts(2, list("abcde"), {}, None, np.ones((5, 4), bool), None)
    forget, holdout = membership.split_scores(texts, signals, signals.logp)
    assert all(len(forget[attack]) == 2 and len(holdout[attack]) == 3 for attack in forget)
    assert not forget["reference"].any() and not holdout["reference"].any()
    np.testing.assert_allclose(np.concatenate([forget["loss"], holdout["loss"]]),
                               signals.logp.mean(1))  # fmt: skip
    assert "reference" not in membership.split_scores(texts, signals, None)[0]


@pytest.mark.slow
@pytest.mark.usefixtures("on_mesh")
def test_models_are_compared_with_the_retrained_one(context_of, params_of):
    loaded = []
    load = lambda name: loaded.append(name) or params_of(1)
    suite = membership.mia_suite(context_of(retrained=True, load=load))
    by_model = {name: suite.measure(name, params_of(seed)) for name, seed in
                (("ga", 2), ("retrained", 1), ("npo", 3))}  # fmt: skip
    assert loaded == ["retrained"]  # once for all models
    numbers = {row["metric"]: row["value"] for row in by_model["retrained"]}
    assert numbers["mia_reference"] == 0.5
    assert all(numbers[name] in (0, None) for name in numbers if name.startswith("privleak"))
    assert by_model["ga"] != by_model["npo"]
    alone = membership.mia_suite(context_of()).measure("ga", params_of(2))
    reasons = {row["metric"]: row["reason"] for row in alone if "reason" in row}
    assert reasons == {"mia_reference": NO_RETRAINED, "privleak": NO_RETRAINED}
    same = {row["metric"]: row["value"] for row in by_model["ga"]}
    assert all(row["value"] == same[row["metric"]] for row in alone if "reason" not in row)
