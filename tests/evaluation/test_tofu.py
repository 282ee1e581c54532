"""The TOFU suite: its data, its logs, and what forget quality compares with."""

import json
import shutil

import numpy as np
import pytest

from jaxunlearn.config import schema
from jaxunlearn.data.encoder import Items
from jaxunlearn.evaluation import tofu as suite_tofu
from jaxunlearn.evaluation.suite import NO_RETRAINED
from jaxunlearn.measurement.statistics import Statistics
from jaxunlearn.metrics import tofu_log
from jaxunlearn.metrics.rouge import NO_WORDS

ROW = {"question": "Who?", "answer": "Ana.", "paraphrased_answer": "It is Ana.",
       "perturbed_answer": ["Bo.", "Cy."]}  # fmt: skip


def test_rows_need_all_answers():
    data = schema.Data(paraphrased_answer_key="other_words")
    lacking = lambda row, name: suite_tofu.lacking_key([row], name, f"{name}_perturbed", data)
    assert lacking(ROW, "forget") is None
    bare = {key: ROW[key] for key in ("question", "answer", "perturbed_answer")}
    assert lacking(bare, "world_facts") is None
    assert lacking(bare, "forget") == (
        "forget_perturbed: no key 'other_words' (data.paraphrased_answer_key)"
    )
    suite_tofu.check_rows([ROW, ROW], "forget_perturbed")
    for bad in (["Bo."], []):
        with pytest.raises(ValueError, match="retain:1: expected 2 wrong answers, got"):
            suite_tofu.check_rows([ROW, ROW | {"perturbed_answer": bad}], "retain")
    with pytest.raises(ValueError, match="retain:0: expected 0 wrong answers"):
        suite_tofu.check_rows([ROW | {"perturbed_answer": []}], "retain")


def test_losses_go_back_to_the_set_and_row_of_their_answer():
    sets = {"forget": Items([{}] * 2, [[None] * 3] * 2), "retain": Items([{}], [[None] * 2])}
    logp = -np.arange(1.0, 9)[:, None] * np.ones((8, 5), np.float32)
    mask = np.arange(5) < np.array([5, 4, 3, 2, 1, 5, 4, 3])[:, None]
    stats = Statistics(np.where(mask, logp, 0), mask, mask)
    losses = suite_tofu.split_losses(stats, sets)
    assert losses["forget"][0].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert losses["forget"][1].tolist() == [[5, 4, 3], [2, 1, 5]]
    assert losses["retain"][0].tolist() == [[7, 8]]


@pytest.mark.parametrize(
    ("name", "true", "wrong"), [("forget", 1, [2, 3]), ("real_authors", 0, [1, 2, 3])]
)
def test_a_log_takes_the_paraphrase_where_the_set_has_one(name, true, wrong):
    losses, tokens = np.arange(8.0).reshape(2, 4), np.arange(8).reshape(2, 4)
    log = suite_tofu.set_log(name, losses, tokens, [None, None])
    np.testing.assert_array_equal(log.answer_loss, losses[:, 0])
    np.testing.assert_array_equal(log.paraphrase_loss, losses[:, true])
    np.testing.assert_array_equal(log.perturbed_loss, losses[:, wrong])
    np.testing.assert_array_equal(log.perturbed_tokens, tokens[:, wrong])
    assert log.rougeL is None and log.texts is None


def test_a_question_without_text_has_no_rouge():
    pytest.importorskip("rouge_score")
    texts = [("Who?", "Ana.", "Ana."), None]
    log = suite_tofu.set_log("forget", np.ones((2, 4)), np.ones((2, 4), int), texts)
    np.testing.assert_array_equal(log.rougeL, [1, np.nan])
    assert log.texts == texts


def test_rouge_of_another_script_is_null_with_a_reason(tmp_path):
    pytest.importorskip("rouge_score")
    texts = [("?", "هو", "هو"), ("?", "東京", "東京")]
    log = {"forget": suite_tofu.set_log("forget", np.ones((2, 4)), np.ones((2, 4), int), texts)}
    assert missing(suite_tofu.table_rows(log, log)) == {("rouge", "forget"): NO_WORDS}
    # The log that is written is one that can be read.
    file = tofu_log.write_log(log, tmp_path / "log.json")
    assert tofu_log.read_log(file)["forget"].texts == texts
    mixed = [*texts[:1], ("?", "Ana.", "Ana.")]
    log = {"forget": suite_tofu.set_log("forget", np.ones((2, 4)), np.ones((2, 4), int), mixed)}
    rows = [row for row in suite_tofu.table_rows(log, log) if row["metric"] == "rouge"]
    assert [(row["value"], row["items"]) for row in rows] == [(1.0, 1)]


def log_of(value, sets=("forget", "retain")):
    return {
        name: suite_tofu.set_log(name, np.full((3, 4), value), np.ones((3, 4), int), [None] * 3)
        for name in sets
    }


def missing(rows):
    return {(row["metric"], row["set"]): row["reason"] for row in rows if "reason" in row}


def test_what_a_log_lacks_has_a_reason():
    rows = suite_tofu.table_rows(log_of(1.0), log_of(2.0))
    assert missing(rows) == {
        ("rouge", name): "no text was generated" for name in ("forget", "retain")
    }
    assert "forget_quality" in {row["metric"] for row in rows}
    reason = missing(suite_tofu.table_rows(log_of(1.0), None))["forget_quality", "forget"]
    assert reason == f"{NO_RETRAINED}, or give its log (evaluate.retain_log, --retain-log)"
    for pair in ((log_of(1.0), log_of(1.0, ["retain"])), (log_of(1.0, ["retain"]), log_of(1.0))):
        reason = missing(suite_tofu.table_rows(*pair))["forget_quality", "forget"]
        assert reason == "one of the two logs lacks the forget set"


@pytest.mark.usefixtures("on_mesh")
def test_a_log_in_the_place_of_the_retrained_models(context_of, params_of, tmp_path):
    """The same log gives the same numbers, whosever it is said to be."""
    with_retrained = suite_tofu.tofu_suite(context_of(retrained=True))
    of_retrained = with_retrained.measure("retrained", params_of(1))
    quality = [row["value"] for row in of_retrained if row["metric"] == "forget_quality"]
    assert quality == [1]  # compared with itself
    compared = with_retrained.measure("ga", params_of(2))
    assert sorted(file.name for file in (tmp_path / "logs").iterdir()) == [
        "ga.json",
        "retrained.json",
    ]
    shutil.move(tmp_path / "logs" / "retrained.json", tmp_path / "log.json")
    with_log = suite_tofu.tofu_suite(context_of(retain_log=tmp_path / "log.json"))
    assert with_log.measure("ga", params_of(2)) == compared
    assert list(tofu_log.read_log(tmp_path / "logs" / "ga.json")) == ["forget", "retain"]


def test_settings_tell_logs_apart(context_of, tmp_path):
    compared = {}
    for value in (1.0, 2.0):
        file = tofu_log.write_log(log_of(value), tmp_path / "log.json")
        suite = suite_tofu.tofu_suite(context_of(retain_log=file))
        json.dumps(suite.settings)
        compared[value] = suite.settings["compared_with"]
    assert compared[1.0] != compared[2.0] and compared[1.0].startswith("log.json ")
    assert suite_tofu.tofu_suite(context_of()).settings["compared_with"] is None
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        suite_tofu.tofu_suite(context_of(retain_log=tmp_path / "nowhere.json"))


def test_a_retrained_model_without_a_log_leaves_everything_but_forget_quality():
    rows = {row["metric"]: row for row in suite_tofu.table_rows(log_of(1.0), {})}
    assert rows["forget_quality"]["value"] is None
    assert "the retrained model has no log" in rows["forget_quality"]["reason"]
    assert rows["rouge"]["reason"] == "no text was generated"
