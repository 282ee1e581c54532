"""The flags of every command, the errors of the functions behind them, and the search path."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import yaml

from jaxunlearn import cli
from jaxunlearn.config import reader, schema
from jaxunlearn.pipeline import checkpoint_effects, evaluate, recipe, relearn
from jaxunlearn.reporting import report
from jaxunlearn.training.checkpoint import CheckpointError

SMALL = {"hidden_size": 8, "intermediate_size": 8, "num_layers": 1, "num_heads": 1}
SMALL |= {"num_kv_heads": 1, "context": 256, "vocab_size": 300}


def test_a_run_needs_exactly_one_configuration(tmp_path, capsys):
    for command in ("run", "forecast"):
        assert cli.main([command]) == 2
        assert f"{command} needs a configuration: jaxunlearn {command} CONFIG; got none" in (
            capsys.readouterr().err
        )
    assert cli.main(["run", "a.yaml", "b.yaml"]) == 2
    assert "got a.yaml, b.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["run"], ["demo"], ["forecast"]])
def test_keys_lists_every_key_with_its_help_text(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([*arguments, "--keys"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    assert "--unlearn.clip-norm" in text and "--objectives.tnpo.guide.every" in text
    assert "Clip gradients to this global norm" in text


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("run", ["CONFIG", "--out", "--only", "--profile", "--peak", "--keys", "--coordinator"]),
        ("demo", ["--out", "--only", "--profile", "--keys", "--distributed"]),
        ("forecast", ["CONFIG", "--memory", "--peak", "--measure", "--keys"]),
        ("evaluate", ["RUN|MODEL", "--suites", "--generate", "--recite", "--retain-log", "--mesh"]),
        ("evaluate", ["--config", "--out", "--retrained", "--base", "--data.forget", "--compute."]),
        ("effects", ["BEFORE", "AFTER", "--by", "--reduction", "--gradients", "--data.source"]),
        ("relearn", ["RUN", "--samples", "--steps", "--lr", "--benign", "--mesh", "--only"]),
        ("report", ["RUN"]),
        ("export", ["RUN", "OBJECTIVE", "FOLDER", "--dtype"]),
    ],
)
def test_help_names_every_flag_of_a_command(command, flags, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and all(flag in text for flag in flags)


@pytest.fixture
def finished(tmp_path):
    """A folder with the configuration of a run."""
    config = schema.Config(
        evaluate=schema.Evaluate(suites=("uwc",), generate=7, retain_log="a.json"),
        relearn=schema.Relearn(samples=(3,), steps=9, lr=0.5, benign=True),
    )
    folder = tmp_path / "finished"
    folder.mkdir()
    (folder / "config.yaml").write_text(reader.dump(config))
    return folder


def passed(monkeypatch, module, name):
    """The arguments that the command line passes on to a function."""
    arguments = {}
    take = lambda run, console, interrupts, **given: arguments.update(given)
    monkeypatch.setattr(module, name, take)
    return arguments


def test_flags_of_evaluate_default_to_the_runs_configuration(finished, monkeypatch):
    arguments = passed(monkeypatch, evaluate, "evaluate")
    assert cli.main(["evaluate", str(finished)]) == 0
    assert arguments == {
        **dict.fromkeys(("config", "out", "retrained", "base")),
        "only": None,
        "suites": ("uwc",),
        "generate": 7,
        "recite": 0,
        "retain_log": "a.json",
        "splits": schema.Splits(),
        "mesh": None,
    }
    flags = "--suites tofu all --generate all --recite 5 --only npo ga --mesh 1 2 4 --retain-log b"
    flags += " --holdout unseen"
    assert cli.main(["evaluate", str(finished), *flags.split()]) == 0
    assert arguments == {
        **dict.fromkeys(("config", "out", "retrained", "base")),
        "only": ("npo", "ga"),
        "suites": ("tofu", "all"),
        "generate": "all",
        "recite": 5,
        "retain_log": "b",
        "splits": schema.Splits(holdout="unseen"),
        "mesh": (1, 2, 4),
    }


@pytest.fixture
def model(tmp_path):
    """A folder that is a model's by its files."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").touch()
    return folder


def test_flags_of_evaluate_for_a_model(model, finished, monkeypatch):
    arguments = passed(monkeypatch, evaluate, "evaluate")
    assert cli.main(["evaluate", str(model)]) == 0
    assert arguments["config"] == schema.Config() and arguments["suites"] == ()
    assert arguments["out"] is arguments["only"] is arguments["base"] is None
    flags = f"--config {finished}/config.yaml --data.forget forget05 --compute.fsdp 2 --generate 3"
    flags += " --retrained a/b --base c --out d --holdout unseen"
    assert cli.main(["evaluate", str(model), *flags.split()]) == 0
    config = arguments["config"]
    assert config.data.forget == "forget05" and config.compute.fsdp == 2
    assert arguments["suites"] == ("uwc",)  # the file's
    assert arguments["generate"] == 3 and arguments["splits"].holdout == "unseen"
    given = (arguments["retrained"], arguments["base"], arguments["out"])
    assert given == ("a/b", "c", pathlib.Path("d"))


def test_a_run_keeps_its_data(finished, monkeypatch, capsys):
    passed(monkeypatch, evaluate, "evaluate")
    assert cli.main(["evaluate", str(finished), "--data.forget", "other"]) == 2
    assert f"--data.forget: is for a model; {finished} is a run, with" in capsys.readouterr().err
    assert cli.main(["evaluate", str(finished), "--compute.batch-tokens", "9"]) == 2
    assert "--compute.batch_tokens: is for a model" in capsys.readouterr().err


def test_flags_of_effects(finished, monkeypatch):
    seen = []
    monkeypatch.setattr(
        checkpoint_effects,
        "checkpoint_effects",
        lambda before, after, **given: seen.append((before, after, given)),
    )
    assert cli.main(["effects", "a", "b/c"]) == 0
    flags = f"--config {finished}/config.yaml --by token layer --reduction token_mean"
    flags += " --gradients gates --data.forget mine --mesh 1 2 1 --out here"
    assert cli.main(["effects", "a", "b/c", *flags.split()]) == 0
    assert [names for *names, _ in seen] == [["a", "b/c"]] * 2
    first, second = (given for *_, given in seen)
    assert first["config"] == schema.Config() and first["reduction"] == "sequence_sum"
    measure = second["config"].measure
    assert (measure.pg_by, measure.gradients) == (("token", "layer"), "gates")
    assert second["config"].data.forget == "mine" and second["mesh"] == (1, 2, 1)
    assert second["config"].relearn.samples == (3,)


def test_flags_of_relearn_default_to_the_runs_configuration(finished, monkeypatch):
    arguments = passed(monkeypatch, relearn, "relearn")
    assert cli.main(["relearn", str(finished)]) == 0
    configured = {"samples": (3,), "steps": 9, "lr": 0.5, "benign": True}
    assert arguments == configured | {"only": (), "mesh": None}
    flags = "--samples 1 all --steps 2 --lr 1e-3 --no-benign --only npo"
    assert cli.main(["relearn", str(finished), *flags.split()]) == 0
    changed = {"samples": (1, "all"), "steps": 2, "lr": 1e-3, "benign": False}
    assert arguments == changed | {"only": ("npo",), "mesh": None}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate", "--suite", "tofu"], ["--suite,", "--suites"]),
        (["evaluate", "--generate", "most"], ["--generate", "most"]),
        (["evaluate", "--mesh", "1", "2"], ["--mesh"]),
        (["relearn", "--steps", "few"], ["--steps", "few"]),
        (["relearn", "--sample", "5"], ["--sample", "--samples"]),
    ],
)
def test_a_flag_that_cannot_be_read_is_named(finished, capsys, arguments, words):
    command, *flags = arguments
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, str(finished), *flags])
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and all(word in message for word in words), message


def test_steps_on_the_way_are_no_flag_of_a_finished_run(finished, capsys):
    assert cli.main(["evaluate", str(finished), "--every", "5"]) == 2
    assert "--every: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("two\n  lines"), "two lines"),
        (FileNotFoundError("no such checkpoint"), "no such checkpoint"),
        (PermissionError(13, "Permission denied", "a.txt"), "a.txt: permission denied"),
        (CheckpointError("leaf of another shape"), "leaf of another shape"),
        (FloatingPointError("the loss is not finite"), "the loss is not finite"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_of_a_command_is_one_line(error, said, finished, tmp_path, monkeypatch, capsys):
    def fail(*args, **given):
        raise error

    monkeypatch.setattr(recipe, "begin", lambda config, out, **_: None)
    monkeypatch.setattr(recipe, "execute", fail)
    monkeypatch.setattr(report, "write_report", fail)
    monkeypatch.setattr(evaluate, "evaluate", fail)
    monkeypatch.setattr(relearn, "relearn", fail)
    run = str(finished)
    commands = (["demo", "--out", str(tmp_path)], ["report", run], ["evaluate", run])
    for arguments in (*commands, ["relearn", run]):
        assert cli.main(arguments) == 2
        message = capsys.readouterr().err
        assert message == f"jaxunlearn: {said}\n"
    monkeypatch.setenv("JAXUNLEARN_TRACEBACK", "1")
    with pytest.raises(type(error)):
        cli.main(["report", run])


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_device_that_is_not_there_is_one_line(tmp_path, platform):
    if platform == "cuda" and shutil.which("nvidia-smi"):
        pytest.skip("this machine has a card")
    code = "import sys; from jaxunlearn.cli import main; sys.exit(main())"
    ended = subprocess.run(
        [sys.executable, "-c", code, "demo", "--out", "run"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ
        | {"JAX_PLATFORMS": platform, "PYTHONPATH": str(pathlib.Path(cli.__file__).parents[1])},
    )
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert f"JAX finds no device (JAX_PLATFORMS={platform})" in ended.stderr
    assert not (tmp_path / "run").exists()


def test_text_of_an_error_does_nothing_to_the_terminal(tmp_path, capsys):
    assert cli.main(["evaluate", str(tmp_path / "\x1b[31mred\x07")]) == 2
    message = capsys.readouterr().err
    assert "?[31mred?" in message and message.rstrip("\n").isprintable()


def command_line(folder, *arguments):
    """Runs the installed command in a folder, as its script does: without it on the path."""
    code = "import sys; from jaxunlearn.cli import main; sys.exit(main())"
    root = str(pathlib.Path(cli.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": root, "JAX_PLATFORMS": "cpu"},
    )


MALICIOUS = "import pathlib; pathlib.Path(__file__).with_name('pwned').touch()\n"


def test_modules_of_the_working_directory_replace_no_installed_ones(tmp_path):
    for name in ("rich", "tyro", "yaml", "jax", "numpy", "optax", "transformers", "matplotlib"):
        (tmp_path / f"{name}.py").write_text(MALICIOUS)
    result = command_line(tmp_path, "report", "nowhere")
    assert result.returncode == 2 and "no finished run here" in result.stderr
    assert not (tmp_path / "pwned").exists()


def test_a_configuration_may_name_a_loss_in_the_working_directory(tmp_path):
    for name in ("rich", "optax", "orbax", "flax"):
        (tmp_path / f"{name}.py").write_text(MALICIOUS)
    (tmp_path / "my_losses.py").write_text(
        "import jax.numpy as jnp\n\n\ndef mine(logp, mask):\n"
        "    return jnp.where(mask, logp, 0).sum(-1)\n"
    )
    config = {
        "new_model": SMALL,
        "data": {"fictional": {"authors": 2, "questions": 1}},
        "objectives": {"own": {"loss": "my_losses:mine"}},
        "unlearn": {"batch_size": 999},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    result = command_line(tmp_path, "run", "config.yaml")
    # The loss is resolved before the number of samples is checked.
    assert result.returncode == 2 and "unlearn.batch_size: 999" in result.stderr, result.stderr
    assert not (tmp_path / "pwned").exists()


def test_an_unknown_suite_is_named_with_the_nearest(finished, capsys):
    assert cli.main(["evaluate", str(finished), "--suites", "tofo"]) == 2
    assert "no suite 'tofo'" in (error := capsys.readouterr().err)
    assert "perhaps you meant 'tofu'" in error


def test_keys_of_data_are_flags(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(recipe, "begin", lambda config, out, **_: seen.append((config, out)))
    monkeypatch.setattr(recipe, "execute", lambda *args, **given: None)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.yaml").write_text(
        "data: {prompt: {style: chat, examples: [{question: a, answer: b}]}}"
    )
    flags = "--data.question-key prompt --data.text-key None --data.prompt.system Brief."
    flags += " --data.prompt.examples.0.answer c --evaluate.splits.holdout unseen"
    arguments = ["run", "~/a.yaml", *flags.split(), "--out=~/mine", "--data.source=~/data"]
    assert cli.main(arguments) == 0
    ((config, out),) = seen
    assert out == tmp_path / "mine"
    assert config.data == schema.Data(
        source="~/data",
        question_key="prompt",
        prompt=schema.Prompt("chat", "Brief.", examples=(schema.Example("a", "c"),)),
    )
    assert config.evaluate.splits == schema.Splits(holdout="unseen")


@pytest.mark.parametrize("command", ["evaluate", "relearn", "report", "export"])
def test_a_run_in_the_home_folder(command, tmp_path, monkeypatch, capsys):
    """Shells fill in `~` where a word begins with it; in a file or after `=` nobody does."""
    monkeypatch.setenv("HOME", str(tmp_path))
    more = ["npo", "~/exported"] if command == "export" else []
    assert cli.main([command, "~/nowhere", *more]) == 2
    assert f"{tmp_path}/nowhere: no " in capsys.readouterr().err


def test_a_retain_log_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = evaluate.request(schema.Config(), ["uwc"], retain_log="~/log.json")
    assert found.retain_log == tmp_path / "log.json"


def test_the_splits_of_suites_are_the_configurations_unless_others_are_given():
    config = schema.Config(evaluate=schema.Evaluate(splits=schema.Splits(holdout="a")))
    assert evaluate.request(config, ["mia"]).splits.holdout == "a"
    other = schema.Splits(holdout="b")
    assert evaluate.request(config, ["mia"], splits=other).splits == other
