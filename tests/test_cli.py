"""Bad input: one clear message, exit code 2, nothing written."""

import json
import shutil

import jax
import pytest
import yaml

from jaxunlearn import cli
from jaxunlearn.config import reader, schema

ROWS = [{"question": f"Who wrote book {i}?", "answer": f"Author {i} wrote it."} for i in range(4)]


KEPT = [{"question": f"Who read book {i}?", "answer": f"Reader {i} did."} for i in range(4)]


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Files of a small run, and a caller that returns exit code and message."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jax, "devices", lambda *a, real=jax.devices: real(*a)[:1])
    folder = tmp_path / "data"
    folder.mkdir()
    write_rows(folder / "forget.jsonl", ROWS)
    for split in ("retain", "retain_perturbed"):
        write_rows(folder / f"{split}.jsonl", KEPT)
    return folder


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def call(capsys, tmp_path, config, *arguments):
    """Runs a configuration; asserts that nothing was written."""
    file = tmp_path / "config.yaml"
    file.write_text(config if isinstance(config, str) else yaml.safe_dump(config))
    code = cli.main(["run", str(file), "--out", str(tmp_path / "out"), *arguments])
    assert not (tmp_path / "out").exists()
    return code, capsys.readouterr().err


def sizes(**changes):
    small = {"hidden_size": 8, "intermediate_size": 8, "num_layers": 1, "num_heads": 1}
    return small | {"num_kv_heads": 1, "context": 64, "vocab_size": 300} | changes


def local(folder, **changes):
    data = {"source": str(folder), "forget": "forget", "retain": "retain"}
    return {"new_model": sizes(), "data": data, "finetune": {"splits": ["forget"]}} | changes


CASES = {
    "unknown key": ({"unlearn": {"lrr": 1}}, ["config.yaml:2", "unlearn.lrr", "'lr'"]),
    "unknown objective": ({"objectives": {"tnop": {}}}, ["objectives.tnop", "'tnpo'"]),
    "unknown hyper-parameter": (
        {"objectives": {"npo": {"hyper": {"betta": 1.0}}}},
        ["objectives.npo", "betta", "'beta'"],
    ),
    "wrong reduction": (
        {"objectives": {"npo": {"reduction": "token_mean"}}},
        ["objectives.npo", "token_mean", "sequence_sum"],
    ),
    "missing split": ({"data": {"forget": "forgett"}}, ["data.forget", "forgett", "'forget'"]),
    "layer": ({"objectives": {"rmu": {"layer": 9}}}, ["objectives.rmu.layer", "0..4"]),
    "reserved name": ({"objectives": {"before": {"loss": "ga"}}}, ["objectives.before"]),
    "no model": ({"model": "./nowhere"}, ["nowhere", "no such folder"]),
    "a module that ends Python": (
        {"objectives": {"mine": {"loss": "ends_python:mine"}}},
        ["objectives.mine", "cannot import 'ends_python': it ends Python (SystemExit(0))"],
    ),
    "names that some disks do not tell apart": (
        {"objectives": {"GA": {"loss": "ga"}, "ga": {}}},
        ["objectives.ga: differs from objectives.GA in case alone"],
    ),
    "base is a stage": ({"objectives": {"base": {"loss": "ga"}}}, ["objectives.base"]),
    "layer cuts": ({"measure": {"layer_cuts": [3, 1]}}, ["measure.layer_cuts", "4 blocks"]),
    "batch too large": ({"unlearn": {"batch_size": 64}}, ["unlearn.batch_size", "64", "20"]),
    "no patience": ({"finetune": {"patience": 0}}, ["finetune.patience", "at least 1"]),
    "gradient turned round": ({"unlearn": {"clip_norm": -1.0}}, ["unlearn.clip_norm", "positive"]),
    "nothing to spare": ({"objectives": {"npo": {"spare": "total"}}}, ["objectives.npo.spare"]),
    "unknown retain term": (
        {"objectives": {"npo": {"retain": "gdd"}}},
        ["objectives.npo.retain", "gdd", "'gd'"],
    ),
    "no module": (
        {"objectives": {"mine": {"loss": "no_such_module:mine"}}},
        ["objectives.mine", "cannot import 'no_such_module'"],
    ),
    "no batch": ({"unlearn": {"batch_size": 0}}, ["unlearn.batch_size", "at least 1"]),
    "never evaluated": ({"finetune": {"evaluate_every": 0}}, ["finetune.evaluate_every"]),
    "nothing to retrain on": (
        {"finetune": {"splits": ["forget"], "epochs": 1, "retrained": True}},
        ["finetune.retrained", "0 samples"],
    ),
    "step beyond the end": ({"measure": {"steps": [0, 600]}}, ["measure.steps", "600"]),
    "tokens without samples": ({"measure": {"token_steps": [7]}}, ["measure.token_steps", "7"]),
    "unused setting": ({"objectives": {"npo": {"scale": 2.0}}}, ["objectives.npo.scale", "npo"]),
    "weight of nothing": (
        {"objectives": {"npo": {"retain_weight": 2.0}}},
        ["objectives.npo.retain_weight: needs a retain term"],
    ),
    "weights that none reads": (
        {"objectives": {"npo": {"guide": {"every": 3}}}},
        ["objectives.npo.guide", "npo does not use it"],
    ),
    "weights never refreshed": (
        {"objectives": {"guided": {"guide": {"every": 0}}}},
        ["objectives.guided.guide.every", "at least 1"],
    ),
    "reward for harm": (
        {"objectives": {"guided": {"guide": {"penalty": -1.0}}}},
        ["objectives.guided.guide.penalty", "negative"],
    ),
    "nothing to guide by": (
        {"objectives": {"guided": {}}, "data": {"retain": "holdout", "measured_retain": "holdout"}},
        ["data.retain", "nothing to draw from"],
    ),
    "no objectives": ({"objectives": {}}, ["objectives", "none"]),
    "mesh": ({"compute": {"fsdp": 3}}, ["compute.fsdp", "3 devices"]),
}


@pytest.fixture(autouse=True)
def ends_python(tmp_path_factory, monkeypatch):
    """A module that is a script, in the search path."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "ends_python.py").write_text("raise SystemExit(0)")
    monkeypatch.syspath_prepend(folder)


@pytest.mark.parametrize("case", CASES)
def test_bad_configurations(bench, capsys, tmp_path, case):
    config, words = CASES[case]
    code, message = call(capsys, tmp_path, config)
    assert code == 2 and message.count("\n") == 1
    assert all(word in message for word in words), message


def test_a_missing_local_split_lists_what_is_there(bench, capsys, tmp_path):
    config = local(bench)
    config["data"]["forget"] = "forget05"
    code, message = call(capsys, tmp_path, config)
    assert code == 2 and "forget05" in message and "retain_perturbed" in message


def test_a_row_without_an_answer(bench, capsys, tmp_path):
    write_rows(bench / "forget.jsonl", [ROWS[0], {"question": "Who?", "answer": ""}])
    code, message = call(capsys, tmp_path, local(bench))
    assert code == 2 and "forget.jsonl:2: expected a non-empty 'answer'" in message


def test_a_row_that_spells_a_special_token(bench, capsys, tmp_path):
    write_rows(bench / "forget.jsonl", [*ROWS, {"question": "Who?", "answer": "A</s> B"}])
    code, message = call(capsys, tmp_path, local(bench))
    assert code == 2 and "forget.jsonl:5: the text spells a BOS or EOS token" in message


def test_invalid_json_names_file_and_line(bench, capsys, tmp_path):
    (bench / "forget.jsonl").write_text(json.dumps(ROWS[0]) + "\n{broken\n")
    code, message = call(capsys, tmp_path, local(bench))
    assert code == 2 and "forget.jsonl:2" in message


def test_an_empty_forget_set(bench, capsys, tmp_path):
    (bench / "forget.jsonl").write_text("")
    code, message = call(capsys, tmp_path, local(bench))
    assert code == 2 and "forget.jsonl" in message and "empty" in message


def test_substitutes_over_the_context(bench, capsys, tmp_path):
    (bench / "idontknow.jsonl").write_text("I do not know. " * 60 + "\n")
    config = local(bench, objectives={"po": {}}, unlearn={"batch_size": 2})
    code, message = call(capsys, tmp_path, config)
    assert code == 2 and "substitute answers" in message and "64 tokens" in message


def test_of_rows_over_the_context_the_first_is_named(bench, capsys, tmp_path):
    rows = [{"question": "q " * 80, "answer": "a"} for _ in range(7)]
    write_rows(bench / "forget.jsonl", [*rows, *ROWS])
    code, message = call(capsys, tmp_path, local(bench))
    assert code == 2 and "as have 6 more rows of" in message and "too_long: drop" in message
    assert "forget.jsonl:1: the row has" in message


def test_a_hugging_face_config_with_an_unknown_setting(bench, capsys, tmp_path, shared_data):
    folder = tmp_path / "model"
    shutil.copytree(shared_data / "models/stories260k", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").chmod(0o644)
    (folder / "config.json").write_text(json.dumps(config | {"sliding_window": 128}))
    code, message = call(capsys, tmp_path, local(bench, model=str(folder)))
    assert code == 2 and "config.json" in message and "sliding_window" in message


def test_weights_of_another_shape(bench, capsys, tmp_path, shared_data):
    folder = tmp_path / "model"
    shutil.copytree(shared_data / "models/stories260k", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").chmod(0o644)
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 176}))
    code, message = call(capsys, tmp_path, local(bench, model=str(folder)))
    assert code == 2 and "model.safetensors" in message and "mlp" in message and "176" in message


def test_an_override_with_a_typo_is_refused(bench, capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        call(capsys, tmp_path, {"name": "a"}, "--unlearn.lrr", "1")
    assert stopped.value.code == 2
    assert "--unlearn.lr" in capsys.readouterr().err


def test_unknown_command_and_no_configuration(capsys):
    assert cli.main(["runn"]) == 2
    message = "jaxunlearn: no command 'runn'; there are: run, demo, forecast, "
    assert capsys.readouterr().err.startswith(message)
    assert cli.main(["--verison"]) == 2
    assert "perhaps you meant '--version'" in capsys.readouterr().err
    assert cli.main(["run"]) == 2
    assert "needs a configuration" in capsys.readouterr().err


def test_a_report_of_nothing(capsys, tmp_path):
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "config.yaml is missing" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        cli.main(["report", str(tmp_path), "--unlearn.lr", "1"])
    assert stopped.value.code == 2 and "--unlearn.lr" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "relearn"])
def test_what_follows_a_run_needs_one(command, tmp_path, capsys):
    assert cli.main([command, str(tmp_path / "none")]) == 2
    words = {"evaluate": "no such folder of a run or a model", "relearn": "no run here (no such"}
    assert words[command] in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, str(tmp_path), "--colour", "red"])
    assert stopped.value.code == 2
    assert "Unrecognized options: --colour, red" in capsys.readouterr().err


def test_half_a_cluster_is_refused(tmp_path, capsys):
    assert cli.main(["demo", "--out", str(tmp_path), "--processes", "2", "--process", "0"]) == 2
    assert "--coordinator: give all of" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_only_some_objectives(tmp_path, capsys):
    config = reader.only(schema.Config(), ["tnpo", "ga"])
    assert list(config.objectives) == ["tnpo", "ga"]
    assert cli.main(["demo", "--out", str(tmp_path), "--only", "npoo"]) == 2
    assert "no 'npoo'; there are: ga, wga" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", ["--only", "--sweep"])
def test_a_list_is_given_once(flag, tmp_path, capsys):
    """Of two the last would count, and the first be dropped."""
    twice = [flag, "ga", f"{flag}=npo"]
    assert cli.main(["demo", "--out", str(tmp_path), *twice]) == 2
    assert f"{flag}: is given twice; write all its values after one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "ran"),
    [
        (["npo"], ["npo_beta_1", "npo_beta_2"]),
        (["npo_beta_2"], ["npo_beta_2"]),
        (["ga", "npo_beta_1"], ["ga", "npo_beta_1"]),
    ],
)
def test_only_some_copies_of_a_sweep(names, ran, tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(cli, "_run_seeds", lambda config, *_: begun.append(list(config.objectives)))
    sweep = ["--sweep", "objectives.npo.hyper.beta=1,2"]
    assert cli.main(["demo", "--out", str(tmp_path), "--only", *names, *sweep]) == 0
    assert begun == [ran]


def test_the_last_seed_is_checked_before_the_first_runs(tmp_path, capsys):
    seeds = ["--seed", str(2**63 - 1), "--seeds", "2"]
    assert cli.main(["demo", "--out", str(tmp_path / "out"), *seeds]) == 2
    assert "--seeds: the last seed: 9223372036854775808 must" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_whole_number_of_any_length_is_out_of_range(tmp_path, capsys):
    assert cli.main(["demo", "--out", str(tmp_path / "out"), "--seed", "1" + 400 * "0"]) == 2
    assert "seed: 1000" in capsys.readouterr().err


def test_a_negative_number_of_profiled_steps(tmp_path, capsys):
    assert cli.main(["demo", "--out", str(tmp_path), "--profile", "-1"]) == 2
    assert "--profile: -1 must not be negative" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_of_seeds_with_bad_input_nothing_is_said_but_the_error(tmp_path, capsys):
    source = ["--data.source", str(tmp_path / "nowhere")]
    assert cli.main(["demo", "--out", str(tmp_path / "out"), *source]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "nowhere" in said.err and not list(tmp_path.iterdir())


def test_what_the_system_says_begins_with_the_path(capsys):
    assert cli._refused(IsADirectoryError(21, "Is a directory", "/a/inputs.json")) == 2
    assert capsys.readouterr().err == "jaxunlearn: /a/inputs.json: is a directory\n"
