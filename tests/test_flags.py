"""Flags of entries that the configuration's file lacks, and the commands that need no run."""

import platform
import re
import sys

import pytest
import yaml

import jaxunlearn
from jaxunlearn import cli, flags, objectives
from jaxunlearn.config import Config, ConfigError, Example, Objective, validate
from jaxunlearn.config.reader import loads
from jaxunlearn.models.decoder import DecoderConfig
from jaxunlearn.pipeline import recipe
from jaxunlearn.training.tasks import make_tasks

BASE = Config(objectives={"ga": Objective(), "npo_0.5": Objective(loss="npo")})


def read(*arguments, base=BASE):
    return flags.read("run", base, list(arguments))


def test_a_flag_adds_an_objective_with_its_hyper_parameters():
    config = read("--objectives.npo2.loss", "npo", "--objectives.npo2.hyper.beta", "0.5")
    assert list(config.objectives) == ["ga", "npo_0.5", "npo2"]
    assert config.objectives["npo2"] == Objective(loss="npo", hyper={"beta": 0.5})
    assert config.objectives["ga"] == Objective()


def test_hyper_parameters_that_the_file_lacks():
    found = read("--objectives.npo_0.5.hyper.beta=1e-3", "--objectives.tnpo.hyper.beta", "-2")
    assert found.objectives["npo_0.5"].hyper == {"beta": 1e-3}  # the name holds a dot
    assert found.objectives["tnpo"].hyper == {"beta": -2.0}
    found = read("--objectives.rmu.hyper.per-dim", "true", "--objectives.rmu.scale", "2")
    assert found.objectives["rmu"] == Objective(hyper={"per_dim": True}, scale=2.0)
    base = Config(objectives={"npo": Objective(hyper={"beta": 0.1})})
    found = read("--objectives.npo.hyper.beta", "0.5", base=base)
    assert found.objectives == {"npo": Objective(hyper={"beta": 0.5})}


def test_a_retain_term_by_flag():
    found = read("--objectives.x.retain", "kl", "--objectives.x.loss", "ga").objectives["x"]
    assert found == Objective(loss="ga", retain="kl")


def test_examples_by_flag():
    path = "--data.prompt.examples"
    config = read(
        "--data.prompt.style", "chat", f"{path}.0.question", "Who?", f"{path}.0.answer=Ana.",
        f"{path}.1.question", "Where?", f"{path}.1.answer", "Rome.",
    )  # fmt: skip
    assert config.data.prompt.examples == (Example("Who?", "Ana."), Example("Where?", "Rome."))
    validate(config)
    with pytest.raises(ConfigError, match="numbered from 0, and the next one is 0"):
        read(f"{path}.1.question", "Where?")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--objectives.npo2.losss", "npo"], ["--objectives.npo2.losss", "--objectives.npo2.loss"]),
        (["--objectives.ga.hypr.beta", "1"], ["--objectives.ga.hypr.beta"]),
        (["--objectives.npo2", "npo"], ["--objectives.npo2"]),
    ],
)
def test_a_misspelt_field_is_refused_with_the_nearest(arguments, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        read(*arguments)
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and all(word in message for word in words), message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--objectives.ga.hyper.beta"], "--objectives.ga.hyper.beta: expected a value"),
        (["--objectives.ga.hyper.beta", "--seed", "1"], "expected a value"),
        (["--objectives.ga.hyper.beta", "much"], "must be a number, not 'much'"),
        (["--objectives.ga.hyper.beta", "[1"], "is not valid YAML"),
    ],
)
def test_a_hyper_parameter_without_a_number(arguments, words):
    with pytest.raises(ConfigError, match=words):
        read(*arguments)


def test_a_misspelt_hyper_parameter_and_objective_get_hints(tmp_path, capsys):
    file = tmp_path / "a.yaml"
    file.write_text("new_model: {vocab_size: 300}\ndata: {fictional: {authors: 2}}\n")
    out = ["--out", str(tmp_path / "out"), "--unlearn.batch-size", "2"]
    assert cli.main(["run", str(file), *out, "--objectives.npo.hyper.betta", "1"]) == 2
    assert "objectives.npo: unknown hyper-parameter" in (error := capsys.readouterr().err)
    assert "'beta'" in error
    assert cli.main(["run", str(file), *out, "--objectives.tnop.hyper.beta", "1"]) == 2
    assert "objectives.tnop: unknown objective 'tnop'" in (error := capsys.readouterr().err)
    assert "'tnpo'" in error and not (tmp_path / "out").exists()


def test_overwrite_reaches_the_run(tmp_path, monkeypatch):
    seen = []
    begin = lambda config, out, overwrite, **given: seen.append(overwrite)
    monkeypatch.setattr(recipe, "begin", begin)
    monkeypatch.setattr(recipe, "execute", lambda *args, **given: None)
    for arguments in ([], ["--overwrite"]):
        assert cli.main(["demo", "--seeds", "1", "--out", str(tmp_path), *arguments]) == 0
    assert seen == [False, True]


# ------------------------------------------------------------------------------- other commands


def test_the_version(capsys):
    assert cli.main(["--version"]) == 0
    printed = capsys.readouterr().out
    assert jaxunlearn.__version__ in printed and platform.python_version() in printed


def test_without_arguments_the_help_is_printed(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([])
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and "--version" in text
    for command in ("run", "demo", "forecast", "evaluate", "relearn", "report", "export"):
        assert re.search(rf"\b{command}\b", text)
    assert re.search(r"\bobjectives\b", text)


ALL = (*objectives.names(), *objectives.retain_names())


def test_all_objectives_are_listed_with_formulas_and_defaults(capsys):
    assert cli.main(["objectives"]) == 0
    text = capsys.readouterr().out
    lines = {line.split()[0]: line for line in text.splitlines() if line.split()}
    assert all("=" in lines[name] for name in ALL)
    assert "beta 0.1" in lines["npo"] and "2404.05868" in lines["npo"]
    assert "reference" in lines["npo"] and "substitutes" in lines["po"]


@pytest.mark.parametrize("name", ALL)
def test_what_is_said_of_an_objective_and_its_configuration(name, capsys):
    assert cli.main(["objectives", name]) == 0
    text = capsys.readouterr().out
    is_retain = name in objectives.retain_names()
    found = (objectives.get_retain if is_retain else objectives.get)(name)
    for key, value in found.hyper:
        assert f"hyper.{key}: {value}  (" in text
        assert f"hyper.{key}: {value}  ()" not in text  # the docstring explains it
    config = loads(text, name)
    validate(config)
    model = DecoderConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_layers=4, num_heads=2,
        num_kv_heads=1, head_dim=4, context=16,
    )  # fmt: skip
    (task,) = make_tasks(config, model)
    loss = task.retain.objective if is_retain else task.objective
    assert loss.name == name


def test_an_objective_of_ones_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "losses_of_mine.py").write_text(
        "def mine(logp, mask, *, alpha: float = 2.0):\n    return alpha * logp.sum(-1)\n"
    )
    name = "losses_of_mine:mine"
    assert cli.main(["objectives", name]) == 0
    text = capsys.readouterr().out
    assert "hyper.alpha: 2.0\n" in text and f"as a retain term: `retain: {name}`" in text
    entry = yaml.safe_load(text)["objectives"]
    assert entry == {"mine": {"loss": name, "hyper": {"alpha": 2.0}}}


def test_an_unknown_objective_is_named_with_the_nearest(capsys):
    assert cli.main(["objectives", "tnop"]) == 2
    assert "perhaps you meant 'tnpo'" in capsys.readouterr().err
