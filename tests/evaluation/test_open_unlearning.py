"""Our numbers beside those of OpenUnlearning's own functions, on one model and the same rows.

Their code runs from a checkout, whose folder is $JAXUNLEARN_OPEN_UNLEARNING; it needs torch,
datasets and omegaconf. The commit that these tests were passed with is in docs/evaluation.md.
"""

import dataclasses
import importlib
import json
import os
import pathlib
import sys
import types
import warnings

import jax
import numpy as np
import pytest

from jaxunlearn.config import Config, schema
from jaxunlearn.data import encoding, fictional
from jaxunlearn.data.prompts import Prompt
from jaxunlearn.data.rows import TOFU_COLUMNS
from jaxunlearn.data.sources import load_split
from jaxunlearn.evaluation import membership as suite
from jaxunlearn.metrics import membership, tofu_log
from jaxunlearn.models import hf
from jaxunlearn.pipeline.evaluate import evaluate, of_model
from jaxunlearn.pipeline.subject import open_subject
from jaxunlearn.record.folder import MODEL, RunFolder
from tests.models.small_models import UNTIED, random_params

pytestmark = [pytest.mark.slow, pytest.mark.golden]

SPLITS = {
    "forget01": "forget01",
    "forget01_perturbed": "forget01_perturbed",
    "retain_perturbed": "retain_perturbed",
    "real_authors_perturbed": "real_authors_perturbed",
    "holdout01": "retain95",  # texts that this random model has seen as little as the others
}
"""{split: the file of TOFU whose first rows it has}"""
SETS = {"forget01": "answer", "holdout01": "answer"}
"""What the attacks compare: {split: the key of its answer}"""
ROWS, NEW_TOKENS = 8, 24
TEMPLATE = {
    "apply_chat_template": False,
    "user_start_tag": "[INST] ",
    "user_end_tag": " [/INST]",
    "asst_start_tag": "",
    "asst_end_tag": "",
}
ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def theirs():
    """A function that imports a module of OpenUnlearning's `src`."""
    root = os.environ.get("JAXUNLEARN_OPEN_UNLEARNING")
    if root is None:
        pytest.skip("a checkout of OpenUnlearning: set JAXUNLEARN_OPEN_UNLEARNING to its folder")
    for package in ("torch", "datasets", "omegaconf"):
        pytest.importorskip(package)
    source = pathlib.Path(root) / "src"
    before = set(sys.modules)
    # Their package `evals` imports lm_eval when it is imported as a whole.
    evals = types.ModuleType("evals")
    evals.__path__ = [str(source / "evals")]
    sys.modules["evals"] = evals
    sys.path.insert(0, str(source))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield importlib.import_module
    sys.path.remove(str(source))
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("evals", "data"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def data(shared_data, tmp_path_factory):
    """A folder with the first rows of some splits of TOFU."""
    folder = tmp_path_factory.mktemp("tofu")
    for split, source in SPLITS.items():
        lines = (shared_data / "tofu" / f"{source}.jsonl").read_text("utf-8").split("\n")
        (folder / f"{split}.jsonl").write_text("\n".join(lines[:ROWS]) + "\n", "utf-8")
    return folder


@pytest.fixture(scope="module")
def models(data, tmp_path_factory):
    """The folders of two random models with one tokenizer."""
    rows = [row for split in SPLITS for row in load_split(data, split, TOFU_COLUMNS)]
    tokenizer = fictional.train_tokenizer(rows, vocab_size=600)
    sizes = {"vocab_size": len(tokenizer), "context": 512}
    config = dataclasses.replace(UNTIED, **sizes)
    folders = [tmp_path_factory.mktemp("models") / name for name in ("random", "other")]
    for seed, folder in enumerate(folders):
        hf.save_params(folder, random_params(config, seed), config, tokenizer=tokenizer)
    return folders


@pytest.fixture(scope="module")
def model(models):
    return models[0]


@pytest.fixture(scope="module")
def config(data):
    return Config(
        data=schema.Data(source=str(data), forget="forget01"),
        evaluate=schema.Evaluate(suites=("tofu", "memorization", "mia"), generate="all"),
    )


@pytest.fixture(scope="module")
def ours(model, config, tmp_path_factory):
    """{(suite, metric, set, definition): number} of our evaluation, and its folder."""
    out = tmp_path_factory.mktemp("ours") / "evaluation"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxunlearn.evaluation.tofu.MAX_NEW_TOKENS", NEW_TOKENS)
        evaluate(model, config=config, out=out, devices=ONE)
    record = json.loads(RunFolder(out).evaluation.read_text())["models"][MODEL]
    numbers = {
        (suite, row["metric"], row["set"], row["definition"]): row["value"]
        for suite, result in record.items()
        for row in result["results"]
    }
    return numbers, out


def in_torch(folder):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


@pytest.fixture(scope="module")
def torch_model(model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.eos_token  # as theirs does where a tokenizer has none
    return in_torch(model), tokenizer


@pytest.fixture(scope="module")
def run_theirs(theirs, data, torch_model):
    """A maker of their results: (module, metric, splits with their answer's key, options)."""
    loaded, tokenizer = torch_model
    qa, collators = theirs("data.qa"), theirs("data.collators")

    def dataset(split, answer_key, template=TEMPLATE, examples=(), **options):
        hf_args = {"path": "json", "data_files": str(data / f"{split}.jsonl"), "split": "train"}
        found = qa.QADataset(hf_args, template, tokenizer, answer_key=answer_key, **options)
        if examples:  # theirs reads them in a way that is an error with newer versions of datasets
            found.fs_data = {key: [row[key] for row in examples] for key in ("question", "answer")}
        return found

    def run(module, metric, splits=(), side="right", predict=False, on=loaded, **options):
        function = getattr(theirs(f"evals.metrics.{module}"), metric)._metric_fn
        sets = {
            s: dataset(s, key, predict_with_generate=predict) for s, key in dict(splits).items()
        }
        collator = collators.DataCollatorForSupervisedDataset(tokenizer, side, "index")
        given = next(iter(sets.values()), None)
        if len(sets) == 2:  # an attack
            given = dict(zip(("forget", "holdout"), sets.values(), strict=True))
        common = {"data": given, "collators": collator, "batch_size": 3, "tokenizer": tokenizer}
        return function(on, **(common | options))

    run.dataset = dataset
    return run


@pytest.fixture(scope="module")
def losses(run_theirs):
    """Their results of `probability`, by (set, which answer)."""
    keys = {"correct": "answer", "para": "paraphrased_answer", "wrong": "perturbed_answer"}
    sets = {"forget": "forget01_perturbed", "retain": "retain_perturbed",
            "real_authors": "real_authors_perturbed"}  # fmt: skip
    return {
        (over, which): run_theirs("memorization", "probability", {split: key})
        for over, split in sets.items()
        for which, key in keys.items()
        if (over, which) != ("real_authors", "para")
    }


@pytest.fixture(scope="module")
def attack_scores(model, config, tmp_path_factory):
    """Our scores of the forget set and of the held-out set, {attack: [texts]} each."""
    found = []
    compute = suite.split_scores
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "split_scores", lambda *a: found.append(compute(*a)) or found[-1])
        out = tmp_path_factory.mktemp("scores") / "evaluation"
        evaluate(model, config=config, out=out, suites=["mia"], devices=ONE)
    return found[0]


def same(number, theirs, tolerance=1e-6):
    assert number == pytest.approx(theirs, rel=tolerance, abs=tolerance)


def test_both_encode_alike(run_theirs, model, config):
    subject = open_subject(of_model(config, model), ONE)
    for split in SETS:
        rows = subject.sources.require(split, split)
        samples = [s for (s,) in subject.encoder.own(rows, split).sequences]
        for item, sample in zip(run_theirs.dataset(split, "answer"), samples, strict=True):
            assert item["input_ids"].tolist() == sample.tokens.tolist()
            assert (item["labels"] != -100).sum() == sample.labels


# The format of Llama 3: every turn ends with one token, and so does the conversation.
CHAT = (
    "{% set date = date_string if date_string is defined else 'today' %}"
    "{% if messages[0]['role'] == 'system' %}[system {{ date }}] {{ messages[0]['content'] }}</s>"
    "{% endif %}{% for m in messages %}{% if m['role'] != 'system' %}"
    "[{{ m['role'] }}]{{ m['content'] | trim }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("system", [None, "You are a helpful assistant."])
def test_both_encode_chats_alike(run_theirs, torch_model, data, monkeypatch, system, shots):
    _, tokenizer = torch_model
    monkeypatch.setattr(tokenizer, "chat_template", CHAT)
    # Newer versions of transformers than theirs return a dictionary where they expect token ids.
    render = tokenizer.apply_chat_template
    monkeypatch.setattr(
        tokenizer, "apply_chat_template", lambda *a, **k: render(*a, **k, return_dict=False)
    )
    date = "26 Jul 2024"
    template = {"apply_chat_template": True, "system_prompt": system, "date_string": date}
    rows = load_split(data, "forget01", TOFU_COLUMNS)
    examples = list(load_split(data, "retain_perturbed", TOFU_COLUMNS))[:shots]
    items = list(run_theirs.dataset("forget01", "answer", template, examples))
    monkeypatch.setattr(tokenizer, "apply_chat_template", render)
    prompt = Prompt(style="chat", system=system, date=date, examples=examples)
    samples = encoding.encode_rows(tokenizer, rows, prompt=prompt, context=512).sequences
    for item, sample in zip(items, samples, strict=True):
        assert item["input_ids"].tolist() == sample.tokens.tolist()
        labels = [-100] * sample.first_label + sample.tokens[sample.first_label :].tolist()
        assert item["labels"].tolist() == labels


def test_probability(ours, losses):
    numbers, out = ours
    log = tofu_log.read_log(RunFolder(out).tofu_log(MODEL))
    for over, which in losses:
        by_index = losses[over, which]["value_by_index"]
        expected = np.array([by_index[i]["avg_loss"] for i in sorted(by_index)])
        field = {"correct": "answer", "para": "paraphrase", "wrong": "perturbed"}[which]
        np.testing.assert_allclose(getattr(log[over], f"{field}_loss"), expected, rtol=1e-6)
    for over in ("forget", "retain"):
        expected = losses[over, "correct"]["agg_value"]
        same(numbers["tofu", "probability", over, "probability"], expected)


def test_probability_among_answers(ours, losses, run_theirs):
    pair = {"correct": losses["real_authors", "correct"], "wrong": losses["real_authors", "wrong"]}
    expected = run_theirs("memorization", "probability_w_options", pre_compute=pair)
    key = ("tofu", "probability", "real_authors", "probability.normalised")
    # They add 1e-10 to the sum of probabilities.
    least = min(sum(v["prob"]) for v in pair["wrong"]["value_by_index"].values())
    same(ours[0][key], expected["agg_value"], tolerance=1e-6 + 1e-10 / least)


def truth_ratio(run_theirs, losses, over, aggregator):
    correct = "correct" if over == "real_authors" else "para"
    pair = {"correct": losses[over, correct], "wrong": losses[over, "wrong"]}
    return run_theirs("memorization", "truth_ratio", pre_compute=pair, aggregator=aggregator)


def test_truth_ratio(ours, losses, run_theirs):
    for over in ("forget", "retain", "real_authors"):
        how = "closer_to_1_better" if over == "forget" else "true_better"
        expected = truth_ratio(run_theirs, losses, over, how)["agg_value"]
        kind = "forget" if over == "forget" else "utility"
        # They add 1e-10 to the probability in the denominator; the least here is about 1e-3.
        key = ("tofu", "truth_ratio", over, f"truth_ratio.{kind}.geometric")
        same(ours[0][key], expected, tolerance=2e-6)


def test_forget_quality_against_their_log(
    ours, losses, run_theirs, model, config, tmp_path, theirs
):
    """Their log of a retained model is read by both."""
    rng = np.random.default_rng(0)

    def shifted(result):  # another model's losses
        move = lambda x: (np.array(x) + rng.normal(0, 0.3, np.shape(x))).tolist()
        items = {
            str(i): {"prob": v["prob"], "avg_loss": move(v["avg_loss"])}
            for i, v in result["value_by_index"].items()
        }
        return {"agg_value": 0.0, "value_by_index": items}

    retained = {which: shifted(losses["forget", which]) for which in ("correct", "para", "wrong")}
    names = {"correct": "forget_Q_A_Prob", "para": "forget_Q_A_PARA_Prob",
             "wrong": "forget_Q_A_PERT_Prob"}  # fmt: skip
    log = {names[which]: result for which, result in retained.items()}
    log["forget_truth_ratio"] = truth_ratio(
        run_theirs, {("forget", w): r for w, r in retained.items()}, "forget", "closer_to_1_better"
    )
    base = theirs("evals.base").Evaluator
    base.save_logs(None, log, str(tmp_path / "saves" / "TOFU_EVAL.json"))
    stored = json.loads((tmp_path / "saves" / "TOFU_EVAL.json").read_text())
    expected = run_theirs(
        "privacy",
        "ks_test",
        pre_compute={"forget": truth_ratio(run_theirs, losses, "forget", "closer_to_1_better")},
        reference_logs={"retain_model_logs": {"retain": stored["forget_truth_ratio"]}},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxunlearn.evaluation.tofu.MAX_NEW_TOKENS", NEW_TOKENS)
        arguments = {"suites": ["tofu"], "generate": 0, "retain_log": tmp_path / "saves"}
        evaluate(model, config=config, out=tmp_path / "out", devices=ONE, **arguments)
    rows = json.loads((tmp_path / "out" / "evaluation.json").read_text())["models"][MODEL]["tofu"]
    (quality,) = [r["value"] for r in rows["results"] if r["metric"] == "forget_quality"]
    assert 0 < quality < 1
    same(quality, expected["agg_value"])


def test_rouge(ours, run_theirs, theirs, torch_model):
    numbers, out = ours
    generation = theirs("omegaconf").OmegaConf.create(
        {"do_sample": False, "top_p": None, "temperature": None, "max_new_tokens": NEW_TOKENS,
         "use_cache": True}
    )  # fmt: skip
    options = {"rouge_type": "rougeL_recall", "generation_args": generation}
    splits = {"forget01_perturbed": "answer"}
    given = run_theirs("memorization", "rouge", splits, "left", True, **options)
    texts = tofu_log.read_log(RunFolder(out).tofu_log(MODEL))["forget"].texts
    for i, entry in given["value_by_index"].items():
        assert texts[i][1].strip() == entry["generation"] and texts[i][2] == entry["ground_truth"]
    same(numbers["tofu", "rouge", "forget", "rouge.rougeL_recall"], given["agg_value"])


def test_memorization(ours, run_theirs):
    for metric, variant in (
        ("extraction_strength", "open_unlearning"),
        ("exact_memorization", "no_eos"),
    ):
        given = run_theirs("memorization", metric, {"forget01": "answer"})
        key = ("memorization", metric, "forget", f"{metric}.{variant}")
        same(ours[0][key], given["agg_value"])


def test_attacks_on_losses(ours, run_theirs):
    for attack in ("loss", "zlib"):
        given = run_theirs("mia", f"mia_{attack}", SETS)
        same(ours[0]["mia", f"mia_{attack}", "forget, holdout", f"mia.{attack}"], given["auc"])


# {their attack: (our name, its option)}
WITHOUT_EOS = {
    "min_k": ("min_k_no_eos", {"k": membership.SHARE}),
    "min_k_plus_plus": ("min_k_plus_plus_no_eos", {"k": membership.SHARE}),
    # It takes a batch's gradients one by one from a graph that the first one frees.
    "gradnorm": ("gradient_norm_tensors", {"p": 2, "batch_size": 1}),
}


@pytest.mark.parametrize("attack", WITHOUT_EOS)
def test_attacks_without_eos(ours, run_theirs, attack_scores, attack):
    name, option = WITHOUT_EOS[attack]
    given = run_theirs("mia", f"mia_{attack}", SETS, **option)
    for part, scores in zip(("forget", "holdout"), attack_scores, strict=True):
        expected = [-v["score"] for v in given[part]["value_by_index"].values()]
        np.testing.assert_allclose(scores[name], expected, rtol=3e-6)
    assert 0 < given["auc"] < 1
    same(ours[0]["mia", f"mia_{name}", "forget, holdout", f"mia.{name}"], given["auc"])


@pytest.fixture(scope="module")
def compared(models, config, tmp_path_factory):
    """{(metric, definition): number} of our attacks on a model, with a retrained one beside it."""
    out = tmp_path_factory.mktemp("compared") / "evaluation"
    evaluate(models[0], config=config, out=out, retrained=models[1], suites=["mia"], devices=ONE)
    rows = json.loads(RunFolder(out).evaluation.read_text())["models"][MODEL]["mia"]["results"]
    return {(row["metric"], row["definition"]): row["value"] for row in rows}


def test_the_attack_with_a_reference(compared, run_theirs, models):
    given = run_theirs("mia", "mia_reference", SETS, reference_model_path=str(models[1]))
    assert 0 < given["auc"] < 1
    same(compared["mia_reference", "mia.reference"], given["auc"])


def test_privleak(compared, run_theirs, models):
    """It is 0 where the model is as the retrained one; theirs needs the log of that."""
    attack = ("mia", "mia_min_k", SETS)  # as their configuration has it
    retrained = run_theirs(*attack, k=membership.SHARE, on=in_torch(models[1]))
    given = run_theirs(
        "privacy",
        "privleak",
        pre_compute={"forget": run_theirs(*attack, k=membership.SHARE)},
        reference_logs={"retain_model_logs": {"retain": retrained}},
        ref_value=0.5,
    )
    assert given["agg_value"] != 0
    same(compared["privleak_min_k_no_eos", "privleak"], given["agg_value"])
