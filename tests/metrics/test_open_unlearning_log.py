"""Logs of OpenUnlearning: what is read, what it is equal to, and what is refused."""

import json

import numpy as np
import pytest

from jaxunlearn.metrics import open_unlearning_log, tofu, tofu_log

SHORT = open_unlearning_log.SETS


def metric(values):
    return {"agg_value": 0.5, "value_by_index": {str(i): v for i, v in enumerate(values)}}


def losses(values):
    """A metric of losses, as `evaluate_probability` and `run_batchwise_evals` leave it in JSON."""
    return metric({"prob": np.exp(-x).tolist(), "avg_loss": x.tolist()} for x in values)


def log_of(n=4, seed=0):
    rng = np.random.default_rng(seed)
    return tofu_log.SetLog(
        answer_loss=rng.uniform(0, 3, n),
        paraphrase_loss=rng.uniform(0, 3, n),
        perturbed_loss=rng.uniform(0, 3, (n, 5)),
        rougeL=rng.uniform(0, 1, n),
        rouge1=rng.uniform(0, 1, n),
    )


def document_of(name, log):
    short = SHORT[name]
    document = {
        f"{short}_Q_A_Prob": losses(log.answer_loss),
        f"{short}_Q_A_PERT_Prob": losses(log.perturbed_loss),
        f"{short}_truth_ratio": metric({"score": 1.0} for _ in log.answer_loss),
        f"{short}_Q_A_ROUGE": metric(
            {"rouge1_recall": a, "rougeL_f1": 0.0, "rougeL_recall": b, "generation": "x"}
            for a, b in zip(log.rouge1, log.rougeL, strict=True)
        ),
    }
    if name in open_unlearning_log.PARAPHRASED:
        document[f"{short}_Q_A_PARA_Prob"] = losses(log.paraphrase_loss)
    return document


@pytest.fixture
def logs():
    logs = {name: log_of(seed=i) for i, name in enumerate(SHORT)}
    for name in ("real_authors", "world_facts"):  # their answers have no paraphrase
        logs[name] = tofu_log.SetLog(
            **vars(logs[name]) | {"paraphrase_loss": logs[name].answer_loss}
        )
    return logs


@pytest.fixture
def document(logs):
    parts = [document_of(name, log) for name, log in logs.items()]
    rest = {"forget_quality": {"agg_value": 0.3}, "privleak": {"agg_value": -3.0}}
    return {key: value for part in parts for key, value in part.items()} | rest


def test_the_losses_of_all_sets_are_read(tmp_path, logs, document):
    (tmp_path / "TOFU_EVAL.json").write_text(json.dumps(document))
    found = tofu_log.read_log(tmp_path)
    assert list(found) == list(logs)
    for name, log in logs.items():
        for field in ("answer_loss", "paraphrase_loss", "perturbed_loss", "rougeL", "rouge1"):
            np.testing.assert_array_equal(getattr(found[name], field), getattr(log, field))


def test_it_gives_the_numbers_of_the_same_log_in_the_authors_format(tmp_path, logs, document):
    tofu_log.write_log(logs, tmp_path / "authors.json")
    (tmp_path / "any name.json").write_text(json.dumps(document))
    model = {name: log_of(seed=10 + i) for i, name in enumerate(SHORT)}
    tables = [
        tofu.table(model, tofu_log.read_log(tmp_path / file))
        for file in ("authors.json", "any name.json")
    ]
    assert tables[0] == tables[1] and tables[0][-2]["metric"] == "forget_quality"


def test_items_come_in_the_order_of_their_indices(tmp_path, logs, document):
    """JSON sorts their indices as text: 0, 1, 10, 2."""
    many = log_of(n=12)
    document |= document_of("forget", many)
    (tmp_path / "log.json").write_text(json.dumps(document, sort_keys=True))
    found = tofu_log.read_log(tmp_path / "log.json")["forget"]
    np.testing.assert_array_equal(found.perturbed_loss, many.perturbed_loss)


def test_a_set_without_all_its_losses_is_left_out(tmp_path, document):
    del document["ra_Q_A_PERT_Prob"], document["forget_Q_A_ROUGE"]
    (tmp_path / "log.json").write_text(json.dumps(document))
    found = tofu_log.read_log(tmp_path / "log.json")
    assert list(found) == ["forget", "retain", "world_facts"] and found["forget"].rougeL is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"forget_Q_A_Prob": {"agg_value": 0.5}}, "forget_Q_A_Prob: expected value_by_index"),
        ({"forget_Q_A_Prob": {"value_by_index": [1]}}, "value_by_index: expected an object"),
        ({"forget_Q_A_Prob": metric([{"prob": 1}])}, "index 0: expected the number or numbers of"),
        ({"forget_Q_A_Prob": losses(np.ones(3))}, "have different items: index 3 is in one"),
    ],
)
def test_a_bad_entry_is_named(tmp_path, document, change, words):
    file = tmp_path / "log.json"
    file.write_text(json.dumps(document | change))
    with pytest.raises(ValueError) as error:
        tofu_log.read_log(file)
    assert str(error.value).startswith(f"{file}: forget_Q_A_Prob") and words in str(error.value)


def test_a_log_without_any_losses_says_which_are_needed(tmp_path):
    file = tmp_path / "TOFU_SUMMARY.json"
    file.write_text(json.dumps({"forget_truth_ratio": metric([{"score": 1.0}])}))
    with pytest.raises(ValueError, match="lacks forget_Q_A_Prob, forget_Q_A_PARA_Prob, forget_Q_A"):
        tofu_log.read_log(file)


def test_what_is_neither_names_both(tmp_path):
    file = tmp_path / "log.json"
    file.write_text(json.dumps({"forget_quality": 0.5}))
    with pytest.raises(ValueError, match=r"expected the sets of TOFU's .* of OpenUnlearning \(for"):
        tofu_log.read_log(file)
