"""What the verdicts need of a run: curves, statistics and results, small enough to be committed."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.precision_compare import rank_correlation
from jaxunlearn import objectives
from jaxunlearn.config import Config, reader
from jaxunlearn.core import files, trees
from jaxunlearn.models.decoder import layer_groups
from jaxunlearn.pipeline import results as pipeline_results
from jaxunlearn.pipeline import stored
from jaxunlearn.pipeline.prepare import prepare
from jaxunlearn.record import attack_results, starts, tables
from jaxunlearn.record.folder import BASE, RunFolder
from jaxunlearn.record.lock import locked
from jaxunlearn.reporting import evaluation_table, summary
from jaxunlearn.reporting.figures.series import select, without

RISKS = ("unlearn", "retain")
CURVES = (
    "value",
    "cosine",
    "risk_norm",
    "objective_norm",
    "risk_value",
    "update_effect",
    "step_change",
    "interval_predicted",
    "interval_change",
)
"""The columns of `g_effect` whose totals are kept, step by step."""

BINS = tuple(round(0.2 * i, 1) for i in range(11))
"""The edges of the bins of an objective's weights of samples: 0, 0.2, .. 2."""

Columns = dict[str, np.ndarray]


def merge_finished(run: Path) -> None:
    """Gives a run that was stopped the tables and results of the objectives that are finished.

    Raises:
      ValueError, FileNotFoundError: there is no run, none of its objectives is finished, or another
        process works on it.
    """
    folder = RunFolder(run)
    config = stored.configuration(folder)
    if not any(folder.result(name).exists() for name in config.objectives):
        raise ValueError(f"{run}: no objective is finished")
    with locked(folder):
        records = files.records(folder.metrics)
        # The models that objectives start from and are compared with were evaluated at their end.
        starting = {
            name: {k: v for k, v in ends[-1].items() if k not in ("step", "objective")}
            for name in stored.STAGES
            if (ends := [r for r in records if r["objective"] == name])
        }
        if BASE not in starting:
            raise ValueError(f"{run}: no evaluation of the model before unlearning is recorded")
        pipeline_results.merge(folder, starting)


def collect(run: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """The facts of a run that has results, whether all of its objectives are in them or not.

    Args:
      run: its folder.
      arguments: of the command that ran it, for the record.

    Returns:
      {"about", "where", "study", "seed", "minutes", "samples", "labels", "base_sha256", "models",
      "objectives"}: "about" is of this command, "where" of the run's newest start, "labels" are the
      label tokens of a sample in the mean, "base_sha256" tells whether another run began with the
      same bits, "models" has results, evaluation and relearning of every model, "objectives" the
      effects of every objective. Numbers have six digits.
    """
    folder = RunFolder(run)
    config = reader.load(folder.config)
    results = files.read_json(folder.results)["models"]
    effects, samples = _columns(run, "g_effect"), _columns(run, "samples")
    by_sample, by_token = _columns(run, "pg_effect"), _columns(run, "token_effect")
    confidence = _columns(run, "confidence")
    first = select(samples, step=0)
    sizes = {
        split: len(set(select(first, split=split)["sample"])) for split in ("forget", "retain")
    }
    by_objective = {}
    for name in (name for name in config.objectives if name in results):
        of = {"objective": name}
        by_objective[name] = {
            **_settings(config, name),
            **_curves(select(effects, **of)),
            "inverse_confidence": _confidence(select(confidence, **of)),
            "samples": _by_step(select(by_sample, **of, layer="total"), _sample_facts),
            "profiles": _by_step(without(select(by_sample, **of), layer="total"), _profile),
            "tokens": _by_step(select(by_token, **of), _token_facts),
        }
    return _rounded(
        {
            "about": record.about("study", arguments, torch_threads=False),
            "where": starts.read(folder)[-1],
            "study": config.name,
            "seed": config.seed,
            "minutes": sum(summary.stage_seconds(run).values()) / 60,
            "samples": sizes,
            "labels": {k: float(select(first, split=k)["tokens"].mean()) for k in sizes},
            "base_sha256": {
                file.name: files.sha256(file)
                for file in sorted(folder.model(BASE).glob("*.safetensors"))
            },
            "models": _models(folder, results, _distances(folder, config)),
            "objectives": by_objective,
        }
    )


# --------------------------------------------------------------------------- of a model


def _distances(folder: RunFolder, config: Config) -> dict[str, float]:
    """|theta_T - theta_0| of every objective whose last parameters are stored."""
    names = stored.finished(folder, config)
    if not names:
        return {}  # as of a run of which the tables alone were brought here
    prepared = prepare(config)
    base = stored.stage_params(folder, prepared, BASE)
    return {
        name: float(trees.norm(trees.subtract(stored.stage_params(folder, prepared, name), base)))
        for name in names
    }


def _models(
    folder: RunFolder, results: Mapping[str, Any], distances: Mapping[str, float]
) -> dict[str, Any]:
    """Results, evaluation, relearning and distance from theta_0 of every model, by name."""
    evaluation = evaluation_table.read(folder.path)["models"]
    relearning = (attack_results.read(folder.path) or {}).get("models", {})
    models = {}
    for name, result in results.items():
        suites = {
            f"{suite}.{row['metric']}.{row['set']}": row["value"]
            for suite, content in evaluation.get(name, {}).items()
            for row in content["results"]
            if row["value"] is not None
        }
        attacks = relearning.get(name, {}).get("attacks", {})
        models[name] = {
            "result": result,
            "distance": distances.get(name),
            "evaluation": suites,
            "relearn": {
                attack: {k: found[k] for k in ("final_forget_es", "final_unseen_es")}
                | {"recovered_at": found["whole"]["step"]}
                for attack, found in attacks.items()
            },
        }
    return models


# --------------------------------------------------------------------------- of an objective


def _settings(config: Config, name: str) -> dict[str, Any]:
    spec = config.objectives[name]
    loss = spec.loss or name
    return {
        "loss": loss,
        "hyper": dict(objectives.get(loss, **spec.hyper).hyper),
        "retain_term": spec.retain,
        "layer": spec.layer,
        "scale": spec.scale,
        "lr": config.unlearn.lr if spec.lr is None else spec.lr,
    }


def _curves(effects: Columns) -> dict[str, Any]:
    """The total effects on both risks step by step, and the value of every group of layers."""
    total = select(effects, layer="total", risk="unlearn")
    curves: dict[str, Any] = {"steps": total["step"].tolist(), "rates": total["lr"].tolist()}
    for risk in RISKS:
        rows = select(effects, risk=risk)
        curves[risk] = {k: select(rows, layer="total")[k].tolist() for k in CURVES}
        names = [n for n in dict.fromkeys(rows["layer"]) if n != "total"]
        layers = {n: select(rows, layer=n)["value"] for n in names}
        curves[risk]["groups"] = {
            group: np.sum([layers[n] for n in members], axis=0).tolist()
            for group, members in layer_groups(names).items()
        }
    return curves


def _confidence(table: Columns) -> list[float]:
    """log10 of the mean of 1/p over the label tokens of D_u, at every measured step."""
    return select(table, statistic="mean")["log10_inverse"].tolist()


def _sample_facts(table: Columns) -> dict[str, Any]:
    """PG-effects of the samples at one step, next to the weights that the objective gives them."""
    forget, retain = (select(table, risk=risk) for risk in RISKS)
    weight, x, y = _weights(forget), forget["value"], retain["value"]
    facts: dict[str, Any] = {
        "unlearn_mean": x.mean(),
        "retain_mean": y.mean(),
        # A sample removes where its effect on D_u is negative, and harms where that on D_r is.
        "removes": np.mean(x < 0),
        "harms": np.mean(y < 0),
        "rank_unlearn_retain": rank_correlation(x, y),
    }
    if weight is None or np.ptp(weight) == 0:
        return facts
    places = np.clip(np.digitize(weight, BINS) - 1, 0, len(BINS) - 2)
    facts["bins"] = [
        {
            "from": BINS[i],
            "samples": int((places == i).sum()),
            "unlearn": x[places == i].mean(),
            "retain": y[places == i].mean(),
        }
        for i in sorted(set(places.tolist()))
    ]
    return facts | _weight_ranks(weight, x, y)


def _token_facts(table: Columns) -> dict[str, Any]:
    """How the PG-effects of label tokens go with the weights that the objective gives them."""
    forget, retain = (select(table, risk=risk) for risk in RISKS)
    weight, x, y = _weights(forget), forget["value"], retain["value"]
    facts: dict[str, Any] = {
        "tokens": len(x),
        "removes": np.mean(x < 0),
        "harms": np.mean(y < 0),
        "rank_unlearn_retain": rank_correlation(x, y),
    }
    if weight is None or np.ptp(weight) == 0:
        return facts
    return facts | _weight_ranks(weight, x, y)


def _weights(table: Columns) -> np.ndarray | None:
    """The weights of a table's rows; None where the objective has none."""
    known = [value for value in table["weight"].tolist() if value is not None]
    return np.array(known, float) if known and len(known) == len(table["weight"]) else None


def _weight_ranks(weight: np.ndarray, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Rank correlations of weights with removal (- PG_u), harm (- PG_r) and its size |PG_r|."""
    return {
        "weight_removal": rank_correlation(weight, -x),
        "weight_harm": rank_correlation(weight, -y),
        "weight_retain_size": rank_correlation(weight, np.abs(y)),
    }


def _profile(table: Columns) -> dict[str, Any]:
    """Where by layer the samples' effects on D_r sit, and how alike the samples are in that."""
    retain = select(table, risk="retain")
    names = list(dict.fromkeys(retain["layer"]))
    by_layer = np.stack([select(retain, layer=name)["value"] for name in names], axis=1)
    sizes = np.abs(by_layer)
    shares = sizes / np.maximum(sizes.sum(1, keepdims=True), np.finfo(float).tiny)
    places = {name: i for i, name in enumerate(names)}
    mean = by_layer.mean(0)
    return {
        "shares": {
            group: shares[:, [places[n] for n in members]].sum(1).mean()
            for group, members in layer_groups(names).items()
        },
        "rank_with_mean": statistics.median(rank_correlation(row, mean) for row in by_layer),
    }


# --------------------------------------------------------------------------- columns of tables


def _columns(run: Path, table: str) -> Columns:
    return {name: np.array(values) for name, values in tables.read(run, table).items()}


def _by_step(table: Columns, facts: Callable[[Columns], dict[str, Any]]) -> dict[str, Any]:
    """{step: facts of the rows of that step}."""
    steps = sorted(set(table["step"].tolist()))
    return {str(step): facts(select(table, step=step)) for step in steps}


def _rounded(value: Any) -> Any:
    """Plain Python values, with six digits."""
    if isinstance(value, Mapping):
        return {key: _rounded(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return float(f"{value:.6g}") if isinstance(value, float) else value
