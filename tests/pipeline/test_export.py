"""A run's models as folders: what transformers computes from them is what the run trained."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxunlearn import cli
from jaxunlearn.data import packing, planning
from jaxunlearn.models import decoder, hf
from jaxunlearn.pipeline.export import export
from jaxunlearn.training import step
from jaxunlearn.training.checkpoint import open_checkpoints
from tests.pipeline.tiny import replace, run

CONFIG = replace(
    finetune={"epochs": 1, "retrained": True},
    unlearn={"epochs": 2},
    measure={"every": 0, "steps": None, "pg_steps": (), "token_steps": ()},
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tiny"
    run(CONFIG, out)
    return out


def trained(out, objective, config=CONFIG):
    """The final parameters, by the way a run itself resumes."""
    spec, steps = config.unlearn, 3 * config.unlearn.epochs // config.unlearn.batch_size
    tx = step.optimizer(weight_decay=spec.weight_decay, clip_norm=spec.clip_norm)
    base = hf.load_params(out / "base", hf.load_config(out / "base"))
    with open_checkpoints(out / "objectives" / objective / "checkpoints") as checkpoints:
        assert checkpoints.latest == steps
        return checkpoints.restore(step.init_state(base, tx)).params


def tensors(folder):
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert a[name].tobytes() == b[name].tobytes(), name


def logits(params, model, tokens):
    """Ours, of one sequence."""
    batch = packing.padded([planning.Sample(np.append(tokens, 0).astype(np.int32), 1)])
    keep = lambda logits, labels: logits
    return jax.jit(lambda p: decoder.forward(p, batch, model, head=keep).labels)(params)[0]


def test_transformers_computes_what_was_trained(finished, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    export(finished, "npo", tmp_path / "npo")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "npo")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "npo").eval()
    ids = np.array(tokenizer("Who wrote the book? Nobody knows.")["input_ids"])
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)[None]).logits[0].numpy()
    model = hf.load_config(tmp_path / "npo")
    params = trained(finished, "npo")
    np.testing.assert_allclose(logits(params, model, ids), expected, atol=1e-5)
    loaded = hf.load_params(tmp_path / "npo", model)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    base = hf.load_params(finished / "base", model)
    assert not np.array_equal(loaded["embed"]["embedding"], base["embed"]["embedding"])
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Who wrote the book? Nobody knows."
    assert not list(tmp_path.glob(".*"))  # nothing temporary is left


def test_bfloat16_is_the_nearest(finished, tmp_path):
    transformers = pytest.importorskip("transformers")
    export(finished, "ga", tmp_path / "ga", "bfloat16")
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), trained(finished, "ga"))
    model = hf.load_config(tmp_path / "ga")
    loaded = hf.load_params(tmp_path / "ga", model, dtype=jnp.bfloat16)
    jax.tree.map(np.testing.assert_array_equal, loaded, half)
    assert {x.dtype.name for x in tensors(tmp_path / "ga").values()} == {"bfloat16"}
    assert transformers.AutoConfig.from_pretrained(tmp_path / "ga").dtype is not None
    assert json.loads((tmp_path / "ga" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("stage", ["base", "retrained"])
def test_models_that_the_run_wrote_itself(finished, tmp_path, stage):
    export(finished, stage, tmp_path / "same")
    same(tensors(tmp_path / "same"), tensors(finished / stage))
    export(finished, stage, tmp_path / "half", "bfloat16")
    narrow = {k: v.astype(jnp.bfloat16) for k, v in tensors(finished / stage).items()}
    same(tensors(tmp_path / "half"), narrow)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "half" / name).read_text() == (finished / stage / name).read_text()


def test_a_model_that_was_given(finished, tmp_path):
    """Its tokenizer and generation settings come along; of fine-tuning there was none."""
    given = tmp_path / "given"
    shutil.copytree(finished / "base", given)
    (given / "generation_config.json").write_text('{"do_sample": false, "eos_token_id": 1}')
    config = replace(CONFIG, model=str(given), finetune={"epochs": 0, "retrained": False})
    out = tmp_path / "run"
    run(replace(config, objectives={"ga": config.objectives["ga"]}), out)
    export(out, "ga", tmp_path / "ga")
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "ga" / name).read_text() == (given / name).read_text()
    with pytest.raises(FileNotFoundError, match=r"makes no model 'base'.*finetune\.epochs"):
        export(out, "base", tmp_path / "base")
    # Weights would be written with a configuration that they were not trained with.
    described = given / "config.json"
    described.write_text(json.dumps(json.loads(described.read_text()) | {"rope_theta": 123.0}))
    with pytest.raises(ValueError, match="begun with other contents of the model's config"):
        export(out, "ga", tmp_path / "other")


def call(capsys, *arguments):
    code = cli.main(["export", *map(str, arguments)])
    output = capsys.readouterr()
    assert output.err.count("\n") == (code == 2)
    return code, output.err or output.out


def test_the_command(finished, tmp_path, capsys):
    code, output = call(capsys, finished, "ga", tmp_path / "deep" / "ga", "--dtype", "bfloat16")
    assert code == 0 and str(tmp_path / "deep" / "ga") in output
    assert (tmp_path / "deep" / "ga" / "model.safetensors").is_file()
    code, output = call(capsys, finished, "ga", tmp_path / "deep" / "ga")
    assert code == 2 and "is not empty" in output
    for wrong in (["--dtype", "float16"], ["--unlearn.lr", "1"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["export", str(finished), "ga", str(tmp_path / "no"), *wrong])
        assert stopped.value.code == 2 and capsys.readouterr().err


def test_no_such_run_or_objective(finished, tmp_path, capsys):
    free = tmp_path / "free"
    code, output = call(capsys, tmp_path / "nowhere", "ga", free)
    assert code == 2 and "no run here (no such folder)" in output
    code, output = call(capsys, tmp_path, "ga", free)
    assert code == 2 and "no run here (config.yaml is missing)" in output
    code, output = call(capsys, finished, "npoo", free)
    assert code == 2 and "there are: base, retrained, ga, npo; perhaps you meant 'npo'" in output
    assert not free.exists()


@pytest.fixture
def copy(finished, tmp_path):
    """A run whose ga can be spoiled."""
    for name in ("config.yaml", "base", "objectives/ga"):
        source, target = finished / name, tmp_path / "copy" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    return tmp_path / "copy"


def test_what_is_not_finished(copy, tmp_path):
    free, result = tmp_path / "free", copy / "objectives" / "ga" / "result.json"
    for unfinished in ("npo", "retrained"):
        with pytest.raises(FileNotFoundError, match=f"'{unfinished}' is not finished"):
            export(copy, unfinished, free)
    output = json.loads(result.read_text())
    result.write_text(json.dumps(output | {"steps": 2, "of_steps": 9}))
    with pytest.raises(FileNotFoundError, match="'ga' diverged after step 2 of 9"):
        export(copy, "ga", free)
    result.write_text(json.dumps(output | {"steps": 9, "of_steps": 9}))
    with pytest.raises(FileNotFoundError, match=r"step 9 but one after step 3; run the conf"):
        export(copy, "ga", free)
    shutil.rmtree(copy / "objectives" / "ga" / "checkpoints")
    with pytest.raises(FileNotFoundError, match="after its last step 9 but none"):
        export(copy, "ga", free)
    result.unlink()
    with pytest.raises(FileNotFoundError, match="'ga' is not finished"):
        export(copy, "ga", free)
    shutil.rmtree(copy / "base")
    with pytest.raises(FileNotFoundError, match="'base' is not finished"):
        export(copy, "ga", free)
    assert not free.exists()


@pytest.mark.parametrize("name", ["retrained", "objectives/ga/model", "objectives/../wga"])
def test_a_folder_of_the_run_is_not_for_exports(copy, name):
    """The run would take it for its own retrained model."""
    with pytest.raises(ValueError, match="is in the folder of the run"):
        export(copy, "ga", copy / name)
    assert not (copy / name).exists()


def test_a_checkpoint_of_another_model(copy, tmp_path):
    raw = json.loads((copy / "base" / "config.json").read_text())
    raw["intermediate_size"] = 26
    (copy / "base" / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=r"down.kernel: expected float32\[2, 26, 16\], found"):
        export(copy, "ga", tmp_path / "free")


def test_a_dtype_that_no_export_has(tmp_path):
    with pytest.raises(
        ValueError, match=r"dtype \(--dtype\): 'float16' must be one of float32, bfloat16"
    ):
        export(tmp_path / "run", "base", tmp_path / "model", "float16")
