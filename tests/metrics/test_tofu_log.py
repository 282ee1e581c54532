"""TOFU logs: what is written, what is read, and what cannot be read."""

import dataclasses
import json
import math

import numpy as np
import pytest

from jaxunlearn.metrics import tofu, tofu_log


def small_log(n=3, seed=0):
    rng = np.random.default_rng(seed)
    return tofu_log.SetLog(
        answer_loss=rng.uniform(0, 3, n),
        paraphrase_loss=rng.uniform(0, 3, n),
        perturbed_loss=rng.uniform(0, 3, (n, 2)),
        rougeL=rng.uniform(0, 1, n),
        rouge1=rng.uniform(0, 1, n),
        answer_tokens=rng.integers(1, 9, n),
        paraphrase_tokens=rng.integers(1, 9, n),
        perturbed_tokens=rng.integers(1, 9, (n, 2)),
        texts=[(f"[INST] {i} [/INST]", "Lima", "São Paulo") for i in range(n)],
    )


def test_the_table_has_what_the_log_can_give():
    one = {"forget": small_log()}
    rows = tofu.table(one)
    assert [(row["metric"], row["set"]) for row in rows] == [(m, "forget") for m in tofu.MEASURES]
    assert all(row["version"] == tofu.DEFINITIONS[row["definition"]].version for row in rows)
    names = [row["definition"] for row in tofu.table(one, one, mean="arithmetic")]
    assert names[2:] == [
        f"{name}.arithmetic" for name in ("truth_ratio.forget", "forget_quality", "ks_distance")
    ]
    every = {name: small_log(seed=i) for i, name in enumerate(tofu_log.FILES)}
    rows = tofu.table(every, every)
    assert [row["metric"] for row in rows[-3:]] == [
        "model_utility",
        "forget_quality",
        "ks_distance",
    ]
    assert {row["definition"] for row in rows if row["metric"] == "probability"} == {
        "probability",
        "probability.normalised",
    }
    json.dumps(rows, allow_nan=False)
    with pytest.raises(ValueError, match="the retain model's log lacks the set 'forget'"):
        tofu.table(one, {"retain": small_log()})


def test_forget_quality_compares_one_forget_set():
    words = "has 3 items with 2 wrong answers, in the retain model's log 4 items with 2 wrong"
    with pytest.raises(ValueError, match=words):
        tofu.table({"forget": small_log()}, {"forget": small_log(4)})


def test_the_item_that_has_a_text_alone_is_named(tmp_path):
    file = tofu_log.write_log({"forget": small_log()}, tmp_path / "log.json")
    document = json.loads(file.read_text())
    document["eval_log_forget.json"]["rougeL_recall"] = {"2": 0.5, "9": 0.5}  # 0 and 1 have none
    file.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="index 9 is in one of them alone"):
        tofu_log.read_log(file)


def test_a_written_log_has_the_authors_keys(tmp_path):
    log = small_log()
    file = tofu_log.write_log({"forget": log, "world_facts": log}, tmp_path / "log.json")
    document = json.loads(file.read_text())
    columns = document["eval_log_forget.json"]
    authors = {
        "avg_gt_loss", "gt_loss", "num_token_gt", "generated_text", "rouge1_recall",
        "rougeL_recall", "average_perturb_loss", "avg_paraphrased_loss", "truth_ratio",
        "paraphrased_loss", "perturb_loss", "num_token_paraphrased", "num_token_perturb",
    }  # fmt: skip
    assert columns.keys() == authors
    assert document["eval_real_world_wo_options.json"].keys() == authors | {"normalized_gt_loss"}
    assert columns["generated_text"]["2"] == ["[INST] 2 [/INST]", "Lima", "São Paulo"]
    np.testing.assert_allclose(columns["gt_loss"]["1"], log.answer_loss[1] * log.answer_tokens[1])
    np.testing.assert_allclose(
        columns["perturb_loss"]["1"], log.perturbed_loss[1] * log.perturbed_tokens[1]
    )
    tr = np.exp(log.paraphrase_loss[0] - log.perturbed_loss[0].mean())
    assert columns["truth_ratio"]["0"] == pytest.approx(tr)
    share = tofu.normalised_probability(log.answer_loss, log.perturbed_loss)
    normalised = document["eval_real_world_wo_options.json"]["normalized_gt_loss"]
    np.testing.assert_allclose(list(normalised.values()), -np.log(share))


def test_what_was_not_measured_is_not_written(tmp_path):
    full = small_log()
    bare = tofu_log.SetLog(full.answer_loss, full.paraphrase_loss, full.perturbed_loss, full.rougeL)
    file = tofu_log.write_log({"retain": bare}, tmp_path)
    again = tofu_log.read_log(file)["retain"]
    assert again.texts is None and again.answer_tokens is None
    assert "gt_loss" not in json.loads(file.read_text())["eval_log.json"]
    short = dataclasses.replace(full, rougeL=full.rougeL[:2])
    with pytest.raises(ValueError, match=r"'retain': arrays of different lengths: .*: 2"):
        tofu_log.write_log({"retain": short}, tmp_path)
    with pytest.raises(
        ValueError, match=r"unknown set 'forgot'; perhaps you meant 'forget'; there"
    ):
        tofu_log.write_log({"forgot": full}, tmp_path)


def test_indices_give_the_order_and_lists_are_read_too(tmp_path):
    columns = {
        "avg_gt_loss": {"10": 2.0, "9": 1.0},
        "avg_paraphrased_loss": {"9": 3.0, "10": 4.0},
        "average_perturb_loss": {"10": [6.0, 7.0], "9": [5.0, 6.0]},
        "rougeL_recall": {"9": 0.5, "10": 1},
    }
    file = tmp_path / "log.json"
    file.write_text(json.dumps({"eval_log.json": columns}))
    log = tofu_log.read_log(file)["retain"]
    assert log.answer_loss.tolist() == [1, 2] and log.perturbed_loss.tolist() == [[5, 6], [6, 7]]
    lists = {key: [column["9"], column["10"]] for key, column in columns.items()}
    file.write_text(json.dumps({"eval_log.json": lists}))
    np.testing.assert_equal(vars(tofu_log.read_log(file)["retain"]), vars(log))


GOOD = {
    "avg_gt_loss": {"0": 1.0, "1": 1.0},
    "avg_paraphrased_loss": {"0": 1.0, "1": 1.0},
    "average_perturb_loss": {"0": [1.0, 2.0], "1": [1.0, 2.0]},
    "rougeL_recall": {"0": 1.0, "1": 1.0},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"avg_gt_loss": None}, r"avg_gt_loss: expected values by index"),
        ({"avg_gt_loss": {"x": 1.0}}, r"avg_gt_loss: an index is no whole number: .*'x'"),
        ({"avg_gt_loss": {"0": 1.0}}, r"different items: index 1 is in one of them alone"),
        ({"avg_gt_loss": {"0": 1.0, "1": "2"}}, r"avg_gt_loss: index 1: expected a number"),
        ({"avg_gt_loss": {"0": 1.0, "1": math.nan}}, r"index 1: expected a number, got nan"),
        (
            {"average_perturb_loss": {"0": [1.0, 2.0], "1": [1.0]}},
            r"average_perturb_loss: index 1: expected a list of 2 numbers, got \[1.0\]",
        ),
        (
            {"generated_text": {"0": ["a", "b", "c"], "1": "b"}},
            r"generated_text: index 1: expected \[prompt, generated text, answer\], got 'b'",
        ),
    ],
)
def test_a_bad_value_is_named_by_file_set_key_and_index(tmp_path, change, message):
    file = tmp_path / "bad.json"
    file.write_text(json.dumps({"eval_log_forget.json": GOOD | change}))
    with pytest.raises(ValueError, match=r"bad\.json: eval_log_forget\.json: .*" + message):
        tofu_log.read_log(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "expected the sets of TOFU"),
        ('{"eval_logs.json": {}}', r"unknown set 'eval_logs.json'; perhaps you meant 'eval_log\."),
        ('{"eval_log.json": []}', "eval_log.json: expected an object of keys, got list"),
        (
            '{"eval_log.json": {"avg_gt_los": {}}}',
            r"no key 'avg_gt_loss'; perhaps you meant 'avg_gt_los'; there are: avg_gt_los",
        ),
    ],
)
def test_what_is_no_log_says_so(tmp_path, text, message):
    file = tmp_path / "bad.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"bad\.json: .*" + message):
        tofu_log.read_log(file)


def test_a_missing_log_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "eval_log_aggregated.json"):
        with pytest.raises(
            FileNotFoundError, match=r"no evaluation log; .* eval_log_aggregated\.json or TOFU_"
        ):
            tofu_log.read_log(path)
