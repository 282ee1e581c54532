"""The TOFU suite: the authors' published numbers, and closed forms."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.metrics import tofu, tofu_log
from jaxunlearn.metrics.rouge import rouge

MODELS = ("full", "retain90")
NAMES = {
    "retain": "Retain",
    "real_authors": "Real Authors",
    "world_facts": "Real World",
    "forget": "Forget",
}
PARTS = {"probability": "Prob.", "rouge": "ROUGE", "truth_ratio": "Truth Ratio"}
NLL = st.floats(0, 20)


def material(shared_data, model):
    """The reduced logs, and each set's rows of TOFU."""
    folder = shared_data / "tofu_eval_logs"
    tasks = json.loads((folder / f"llama2-7b_{model}_wd0.01.json").read_text())["tasks"]
    rows = {}
    for file, task in tasks.items():
        lines = (shared_data / "tofu" / f"{task['data']}.jsonl").read_text("utf-8").split("\n")
        rows[file] = [json.loads(line) for line in lines if line][: task["n"]]
    return tasks, rows


def as_the_authors_wrote_it(shared_data, model, file):
    """Undo the reduction: values by index, float32 losses, texts with prompt and answer."""
    tasks, rows = material(shared_data, model)
    document = {}
    for name, task in tasks.items():
        columns = {key: column for key, column in task.items() if isinstance(column, list)}
        for key in ("avg_gt_loss", "avg_paraphrased_loss", "average_perturb_loss"):
            columns[key] = np.float32(columns[key]).tolist()
        columns["generated_text"] = [
            [f"[INST] {row['question']} [/INST]", text, row["answer"]]
            for row, text in zip(rows[name], columns["generated_text"], strict=True)
        ]
        document[name] = {k: {str(i): v for i, v in enumerate(c)} for k, c in columns.items()}
    file.write_text(json.dumps(document), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def golden(shared_data, tmp_path_factory):
    """The logs of both models, read from the authors' layout, and the expected numbers."""
    folder = tmp_path_factory.mktemp("logs")
    logs = {
        model: tofu_log.read_log(
            as_the_authors_wrote_it(shared_data, model, folder / f"{model}.json")
        )
        for model in MODELS
    }
    return logs, json.loads((shared_data / "tofu_eval_logs" / "expected.json").read_text())


def by_metric(rows):
    return {(row["metric"], row["set"]): row["value"] for row in rows}


@pytest.mark.golden
@pytest.mark.parametrize("model", MODELS)
def test_every_part_and_the_utility_are_the_published_ones(golden, model):
    logs, expected = golden
    result = by_metric(tofu.table(logs[model]))
    published = expected["model_utility"][f"{model}_wd0.01"]["tofu_aggregate"]
    for name, title in NAMES.items():
        for measure, part in PARTS.items():
            assert result[measure, name] == pytest.approx(published[f"{part} {title}"], abs=1e-12)
    (utility,) = (value for (metric, _), value in result.items() if metric == "model_utility")
    assert utility == pytest.approx(published["Model Utility"], abs=1e-12)
    assert utility == pytest.approx({"full": 0.622677, "retain90": 0.613745}[model], abs=1e-6)


@pytest.mark.golden
@pytest.mark.parametrize("model", MODELS)
def test_the_arithmetic_mean_gives_the_numbers_of_the_authors_other_script(golden, model):
    logs, expected = golden
    result = by_metric(tofu.table(logs[model], mean="arithmetic"))
    other = expected["model_utility"][f"{model}_wd0.01"]["tofu_utils"]
    for name, title in NAMES.items():
        assert result["truth_ratio", name] == pytest.approx(
            other[f"{title} Truth Ratio"], abs=1e-12
        )
    (utility,) = (value for (metric, _), value in result.items() if metric == "model_utility")
    assert utility == pytest.approx(other["Model Utility"], abs=1e-12)


@pytest.mark.golden
@pytest.mark.parametrize("pair", [0, 1])
@pytest.mark.parametrize(("mean", "suffix"), [("geometric", ""), ("arithmetic", "_arith")])
def test_forget_quality_is_the_published_one(golden, pair, mean, suffix):
    logs, expected = golden
    known = expected["forget_quality"][pair]
    model = known["unlearned"].removesuffix("_wd0.01")
    result = by_metric(tofu.table(logs[model], logs["retain90"], mean=mean))
    p_value, distance = result["forget_quality", "forget"], result["ks_distance", "forget"]
    assert p_value == pytest.approx(known["ks_pvalue" + suffix], rel=1e-9)
    assert distance == pytest.approx(known["ks_statistic" + suffix], abs=1e-12)
    if (pair, mean) == (0, "geometric"):
        assert p_value == pytest.approx(1.834e-21, rel=1e-3)
        assert distance == pytest.approx(0.39667, abs=1e-5)


@pytest.mark.golden
def test_forget_quality_of_disjoint_samples_is_exact(shared_data):
    expected = json.loads((shared_data / "tofu_eval_logs" / "expected.json").read_text())
    for known in expected["ks_disjoint"]:
        low, n = np.arange(known["n"], dtype=float), known["n"]
        result = tofu.forget_quality(low, low + n)
        assert result.p_value == pytest.approx(known["ks_pvalue"], rel=1e-9)
        assert result.distance == 1
        # Only 2 of the (2n choose n) orders of two samples are as far apart.
        assert result.p_value == pytest.approx(2 / math.comb(2 * n, n), rel=1e-6)


@pytest.mark.golden
@pytest.mark.parametrize("model", MODELS)
def test_rouge_of_every_generated_text_is_the_logged_one(golden, model):
    logs, _ = golden
    for log in logs[model].values():
        _, generated, answers = zip(*log.texts, strict=True)
        result = rouge(generated, answers)
        for name, logged in (("rougeL_recall", log.rougeL), ("rouge1_recall", log.rouge1)):
            # The logs keep fifteen decimals.
            assert [round(recall, 15) for recall in result[name].tolist()] == logged.tolist()


@pytest.mark.golden
def test_a_log_written_again_is_the_same_log(golden, tmp_path):
    logs, _ = golden
    file = tofu_log.write_log(logs["full"], tmp_path)
    assert file == tmp_path / "eval_log_aggregated.json"
    again = tofu_log.read_log(tmp_path)
    assert list(again) == list(logs["full"])
    for name, log in again.items():
        for field in dataclasses.fields(log):
            result, written = (getattr(x, field.name) for x in (log, logs["full"][name]))
            np.testing.assert_array_equal(result, written)


def slow_lcs(a, b):
    """Length of the longest common subsequence, by recursion over all pairs."""
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return slow_lcs(a[:-1], b[:-1]) + 1
    return max(slow_lcs(a[:-1], b), slow_lcs(a, b[:-1]))


@settings(max_examples=30, deadline=None)
@given(*[st.lists(st.sampled_from(["one", "two", "three"]), min_size=1, max_size=5)] * 2)
def test_rouge_equals_a_slow_loop(reference, generated):
    result = rouge([" ".join(generated)], [" ".join(reference)], stem=False)
    common = slow_lcs(reference, generated)
    shared = sum(min(reference.count(w), generated.count(w)) for w in set(reference))
    assert result["rougeL_recall"][0] == pytest.approx(common / len(reference))
    assert result["rougeL_f1"][0] == pytest.approx(2 * common / len(reference + generated))
    assert result["rouge1_recall"][0] == pytest.approx(shared / len(reference))


def test_stems_make_words_equal():
    assert rouge(["writes novels"], ["writing novel"])["rougeL_recall"] == 1
    assert rouge(["writes novels"], ["writing novel"], stem=False)["rougeL_recall"] == 0
    assert rouge([""], ["a"])["rougeL_recall"] == 0
    # In another script nothing can be said, not even of a text that is the same.
    for values in rouge(["من هو", "東京", "a", "?"], ["من هو", "東京", "a", "..."]).values():
        np.testing.assert_array_equal(values, [np.nan, np.nan, 1, np.nan])
    with pytest.raises(ValueError, match="1 texts, but 2 references"):
        rouge(["a"], ["a", "b"])


@settings(max_examples=50, deadline=None)
@given(NLL, st.lists(NLL, min_size=1, max_size=4))
def test_probability_and_truth_ratio_equal_their_formulas(true, wrong):
    p, others = math.exp(-true), [math.exp(-a) for a in wrong]
    losses, lists = np.array([true]), np.array([wrong])
    assert tofu.probability(losses)[0] == pytest.approx(p)
    assert tofu.normalised_probability(losses, lists)[0] == pytest.approx(p / (p + sum(others)))
    means = {
        "geometric": math.prod(others) ** (1 / len(others)),
        "arithmetic": sum(others) / len(others),
    }
    for mean, of_wrong in means.items():
        log_ratio = tofu.log_truth_ratio(losses, lists, mean=mean)
        tr = of_wrong / p
        assert np.exp(log_ratio[0]) == pytest.approx(tr)
        assert tofu.forget_truth_ratio(log_ratio) == pytest.approx(min(tr, 1 / tr))
        assert tofu.utility_truth_ratio(log_ratio) == pytest.approx(max(0, 1 - tr), abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.lists(NLL, min_size=2, max_size=4), NLL, st.floats(-5, 5), st.randoms())
def test_the_truth_ratio_ignores_a_common_factor_and_order(wrong, true, shift, random):
    shuffled = random.sample(wrong, len(wrong))
    for mean in ("geometric", "arithmetic"):
        result = tofu.log_truth_ratio(np.array([true]), np.array([wrong]), mean=mean)
        shifted = np.array([true + shift]), np.array([shuffled]) + shift
        np.testing.assert_allclose(tofu.log_truth_ratio(*shifted, mean=mean), result, atol=1e-9)
        assert tofu.forget_truth_ratio(result) == pytest.approx(tofu.forget_truth_ratio(-result))
    arithmetic, geometric = (
        tofu.log_truth_ratio(np.array([true]), np.array([wrong]), mean=m)[0]
        for m in ("arithmetic", "geometric")
    )
    assert arithmetic >= geometric - 1e-9


def test_a_collapsed_model_neither_overflows_nor_ties():
    """After gradient ascent answers cost hundreds of nats a token: exp alone gives 0, inf, NaN."""
    true, wrong = np.array([900.0, 50.0]), np.array([[20.0, 30.0], [980.0, 990.0]])
    log_ratio = tofu.log_truth_ratio(true, wrong)
    np.testing.assert_allclose(log_ratio, [875, -935])
    assert tofu.forget_truth_ratio(log_ratio) == 0
    assert tofu.utility_truth_ratio(log_ratio) == 0.5
    assert tofu.normalised_probability(true, wrong).tolist() == [0, 1]
    ratios = -np.arange(800.0, 1000.0)  # exp would make most of them one tie at 0
    assert tofu.forget_quality(ratios, ratios - 1).p_value > 0.99
    assert tofu.probability(np.array([np.inf])).tolist() == [0]


def test_losses_that_are_no_number_are_named():
    nan, inf = np.array([1.0, np.nan]), np.array([1.0, np.inf])
    lists = np.array([[1.0, 2.0], [np.inf, np.inf]])
    with pytest.raises(ValueError, match="item 1: a loss is NaN"):
        tofu.probability(nan)
    with pytest.raises(ValueError, match=r"item 1: .* undefined"):
        tofu.log_truth_ratio(inf, lists)
    with pytest.raises(ValueError, match="item 1: every answer's loss is infinite"):
        tofu.normalised_probability(inf, lists)
    with pytest.raises(ValueError, match="'median': expected 'geometric' or 'arithmetic'"):
        tofu.log_truth_ratio(np.ones(1), np.ones((1, 2)), mean="median")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(1e-6, 1), min_size=9, max_size=9), st.integers(0, 8))
def test_model_utility_is_a_harmonic_mean(values, zero):
    parts = dict(zip(tofu.PARTS, values, strict=True))
    result = tofu.model_utility(parts)
    assert result == pytest.approx(9 / sum(1 / v for v in values))
    assert min(values) * (1 - 1e-9) <= result <= max(values) * (1 + 1e-9)
    equal = tofu.model_utility(dict.fromkeys(tofu.PARTS, values[0]))
    assert equal == pytest.approx(values[0])
    assert tofu.model_utility(parts | {tofu.PARTS[zero]: 0.0}) == 0


def test_model_utility_takes_its_nine_parts_and_no_others():
    parts = dict.fromkeys(tofu.PARTS, 0.5)
    assert len(parts) == 9
    lacking = {name: value for name, value in parts.items() if name != "retain.rouge"}
    for bad, message in (
        (lacking, r"lacks retain\.rouge"),
        (parts | {"forget.rouge": 0.5}, r"no part forget\.rouge"),
        (parts | {"retain.rouge": np.nan}, r"0 or more, but .*retain\.rouge"),
    ):
        with pytest.raises(ValueError, match=message):
            tofu.model_utility(bad)


@settings(max_examples=30, deadline=None)
@given(*[st.lists(st.floats(-10, 10).map(lambda x: round(x, 1)), min_size=1, max_size=8)] * 2)
def test_the_ks_distance_equals_a_slow_loop(first, second):
    below = lambda sample, x: sum(v <= x for v in sample) / len(sample)
    slow = max(abs(below(first, x) - below(second, x)) for x in first + second)
    result = tofu.forget_quality(np.array(first), np.array(second))
    assert result.distance == pytest.approx(slow)
    assert result == pytest.approx(tofu.forget_quality(np.array(second), np.array(first)))
    assert tofu.forget_quality(np.array(first), np.array(first[::-1])) == (1, 0)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 5), (40, 40), (40, 25)])
def test_the_ks_p_value_is_exact(n, m):
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(n + m)
    for shift in (0, 0.3, 1, 3, 9):
        first, second = rng.normal(size=n), rng.normal(size=m) + shift
        oracle = stats.ks_2samp(first, second, method="exact")
        result = tofu.forget_quality(first, second)
        assert result.p_value == pytest.approx(oracle.pvalue, rel=1e-12)
        assert result.distance == pytest.approx(oracle.statistic, rel=1e-12)


def test_forget_quality_needs_numbers():
    for bad in (np.array([]), np.array([np.nan])):
        with pytest.raises(ValueError, match="needs numbers on both sides, no NaN; got 3 and"):
            tofu.forget_quality(np.ones(3), bad)


@pytest.mark.parametrize("shapes", [((3, 1), (3, 2)), ((1,), (3, 2)), ((3,), (3,)), ((3,), (3, 0))])
def test_a_truth_ratio_is_of_one_item_each(shapes):
    """Columns against rows would give the ratios of all pairs of items."""
    with pytest.raises(ValueError, match=r"expected \[n\] and \[n, k\], k >= 1"):
        tofu.log_truth_ratio(*map(np.ones, shapes))
