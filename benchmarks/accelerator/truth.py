"""Section truth: whether the device's numbers are right, before any of its seconds count."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import contract
from benchmarks.accelerator import tiny_run
from benchmarks.accelerator.inputs import Setting
from benchmarks.accelerator.ledger import NoMaterial, Row, Values
from jaxunlearn.core import files
from jaxunlearn.data import packing
from jaxunlearn.data.planning import Sample
from jaxunlearn.models import decoder, hf, sharding
from jaxunlearn.models.decoder import DecoderConfig, decode
from jaxunlearn.record import tables
from jaxunlearn.record.folder import RunFolder

COLUMNS = {
    "worst": ("largest error", "small"),
    "loss": ("of", "text"),
    "holds": ("within 1e-5", "text"),
    "equal": ("equal", "text"),
    "note": ("note", "text"),
}
EXACT, HALF = {"dtype": "float32", "precision": "highest"}, {"dtype": "bfloat16"}
ARITHMETIC = (EXACT, HALF, EXACT | {"precision": "default"})
WAYS = (("packed", "jvp"), ("packed", "gates"), ("padded", "jvp"), ("padded", "vmap"))
REHEARSED = ("npo", "undial", "rmu")  # one loss of each kind
GOLDEN_TOLERANCE = 1e-5
KILL_AFTER = 15  # updates


def rows(setting: Setting) -> list[Row]:
    """Float32 first, then a known model and a run, then the types that are not exact."""
    losses = REHEARSED if setting.rehearsal else contract.NAMES
    compared = [
        [
            Row(
                f"{model.arithmetic}: {kind}, {method}",
                partial(compare, setting, losses, model, kind, method),
            )
            for kind, method in WAYS
        ]
        for model in (dataclasses.replace(contract.MODEL, **how) for how in ARITHMETIC)
    ]
    known = [
        Row("stories260k, float32", partial(golden, setting, EXACT)),
        Row("stories260k, bfloat16", partial(golden, setting, HALF)),
        Row("stories260k, greedy text", partial(greedy, setting)),
        Row("a run, killed and resumed", partial(resume, setting)),
    ]
    if setting.rehearsal:  # a CPU's float32 is exact in any precision
        return [*compared[0], *known, *compared[1][:1]]
    return [*compared[0], *known, *compared[1], *compared[2]]


def compare(
    setting: Setting,
    losses: tuple[str, ...],
    model: DecoderConfig,
    kind: str,
    method: str,
) -> Values:
    """The error of every loss's derivatives against float64, relative to the norms."""
    sequences, trees, exact = setting.kept.get("contract", partial(_contract, losses))
    packed = contract.layout(sequences, kind)
    inputs = contract.make_rows(packed, trees)  # exact for every model
    with _one_device():
        if method == "gates":
            results = contract.by_gates(inputs, trees, model, losses)
        else:
            results = contract.by_definition_or_jvp(inputs, trees, model, method, losses)
    each = [
        contract.relative_errors(contract.in_order(np.asarray(r), packed), exact) for r in results
    ]
    errors = np.max(each, axis=0)
    return {
        "worst": float(errors.max()),
        "loss": losses[int(errors.argmax())],
        "holds": bool(errors.max() <= contract.SCALE_TOLERANCE),
        "errors": dict(zip(losses, errors.tolist(), strict=True)),
    }


def golden(setting: Setting, arithmetic: dict[str, str]) -> Values:
    """log p of a story's tokens against numbers that another implementation computed."""
    folder = _stories(setting)
    expected = json.loads((folder / "golden.json").read_text())
    model = hf.load_config(folder, **arithmetic)
    params = hf.load_params(folder, model)
    batch = packing.padded([Sample(np.array(expected["story_ids"], np.int32), 1)])
    logp = jax.jit(lambda p: decoder.forward(p, batch, model).labels)(params)
    error = float(np.abs(np.asarray(logp[0]) - expected["story_token_logprob"]).max())
    return {"worst": error, "loss": "log p", "holds": error <= GOLDEN_TOLERANCE}


def greedy(setting: Setting) -> Values:
    """The text that the model writes, token by token, against transformers' on a CPU."""
    folder = _stories(setting)
    expected = np.array(json.loads((folder / "golden.json").read_text())["greedy_ids"])
    model = hf.load_config(folder)
    start = 5  # tokens of the prompt, "Once upon a time"
    tokens, _ = decode.generate(
        hf.load_params(folder, model),
        jnp.asarray(expected[None, :start], jnp.int32),
        jnp.array([start]),
        model,
        max_new_tokens=len(expected) - start,
        eos_token_id=None,
    )
    same = np.asarray(tokens[0]) == expected[start:]
    return {"equal": bool(same.all()), "note": f"{same.sum()} of {same.size} tokens"}


def resume(setting: Setting) -> Values:
    """A run that is killed by a signal and started again, next to one that is not disturbed."""
    whole, broken = (setting.work / "truth" / name for name in ("whole", "broken"))
    tiny_run.run(whole)
    command = [sys.executable, "-m", "benchmarks.accelerator.tiny_run", str(broken)]
    process = subprocess.Popen(command)
    try:
        while process.poll() is None and _updates(broken) < KILL_AFTER:
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    updates = _updates(broken)
    interrupted = not RunFolder(broken).results.exists()
    tiny_run.run(broken)
    apart = {name: _distance(_numbers(whole, name), _numbers(broken, name)) for name in TABLES}
    worst = max(apart, key=apart.__getitem__)
    note = f"killed after {updates} updates" if interrupted else "the run ended before the signal"
    return {
        "worst": apart[worst],
        "loss": worst,
        "equal": interrupted and apart[worst] == 0,
        "note": note,
    }


TABLES = ("g_effect", "pg_effect", "samples")


def _numbers(folder: Path, table: str) -> list[np.ndarray]:
    """The columns of numbers of a table."""
    columns = tables.read(folder, table).values()
    numeric = [c for c in columns if all(isinstance(x, int | float | None) for x in c)]
    return [np.array(c, float) for c in numeric]


def _distance(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    """The largest difference of two tables, relative to the largest value of its column."""
    apart = [
        np.nanmax(np.abs(x - y), initial=0.0) / (np.nanmax(np.abs(x), initial=0.0) or 1.0)
        for x, y in zip(a, b, strict=True)
    ]
    return float(max(apart))


def _updates(folder: Path) -> int:
    """The updates of unlearning that a run has recorded."""
    records = files.records(RunFolder(folder).metrics)
    return sum(record["objective"] in tiny_run.CONFIG.objectives for record in records)


def _contract(losses: tuple[str, ...]) -> tuple[Any, contract.Trees, contract.Oracle]:
    """Samples, parameters and the oracle, whose float64 is the CPU's."""
    sequences, trees = contract.make_sequences(), contract.make_trees()
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        on_host = contract.Trees(*jax.tree.map(np.asarray, tuple(trees)))
        exact = contract.oracle(sequences, on_host, losses)
    return sequences, trees, exact


def _stories(setting: Setting) -> Path:
    folder = setting.material.find("stories260k")
    if folder is None:
        raise NoMaterial("stories260k is not in the pack")
    return folder


def _one_device() -> Any:
    return jax.set_mesh(sharding.make_mesh(devices=jax.devices()[:1]))
