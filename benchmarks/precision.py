"""Error of effects at each precision of products, against float64.

    python -m benchmarks.precision [--model FOLDER --tofu FOLDER] [--samples 16] [--json FILE]

Takes a model a few steps of unlearning away from theta_0 and computes e on both risks for several
objectives, and the PG-effects of every sample along both risks' gradients, by layer: once in
float64, and once at each precision, the reference pass included. On a CPU, which multiplies float32
as such, the products of accelerators are emulated (`benchmarks.rounding`): operands of every
float32 product are rounded to the nearest TF32 or bfloat16 number, and added up in float32. That is
what the hardware is said to do, not a measurement of it. On an accelerator its own precisions are
measured, and float64 is computed on the CPU.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import precision_compare, precision_job, precision_measure, record
from benchmarks.precision_job import Job, Training
from benchmarks.precision_measure import EXACT, OBJECTIVES, RISKS, Setting


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures all settings and prints the tables."""
    parser = _parser()
    options = parser.parse_args(arguments)
    _refuse_what_gives_no_numbers(parser, options)
    training = Training(options.finetune, options.steps, options.lr)
    try:
        job = precision_job.make_job(options.model, options.tofu, options.samples, training)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if options.bfloat16_params:
        job = precision_job.rounded(job)
    settings = [s for s in precision_measure.settings() if s.name in options.settings]
    result = record.about("precision", arguments) | {
        "model": options.model,
        "training": training._asdict(),
        "bfloat16_params": options.bfloat16_params,
        "samples": {"source": job.source, "forget": options.samples, "retain": options.samples},
        "layers": precision_measure.layers(job),
        "settings": measure(job, settings, options.objectives),
    }
    record.show(result)
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def measure(
    job: Job, settings: Sequence[Setting], objectives: Sequence[str]
) -> list[dict[str, Any]]:
    """The error of each setting, a row each, see `precision_compare.compare`."""
    exact, squares = precision_measure.measure(job, EXACT, objectives)
    scale = precision_measure.scales(squares, precision_measure.sample_norms(job))
    rows = []
    for setting in settings:
        effects, _ = precision_measure.measure(job, setting, objectives)
        changes = precision_compare.compare(effects, exact, scale, objectives)
        rows.append({"setting": setting.name, "meaning": setting.meaning} | changes)
    return rows


def show(result: dict[str, Any]) -> None:
    """Prints the tables of a result in markdown."""
    count = result["samples"]["forget"]
    rounded = ", parameters rounded to bfloat16" if result["bfloat16_params"] else ""
    origin = f"{count} + {count} samples, {result['samples']['source']}{rounded}"
    print(f"\n{result['model']}, {origin}\n")
    print("| setting | products |\n|---|---|")
    for row in result["settings"]:
        print(f"| {row['setting']} | {row['meaning']} |")
    show_errors("e of every objective on both risks", result["settings"], "g")
    show_errors("PG-effects of every sample along both risks' gradients", result["settings"], "pg")
    show_objectives(result["settings"])


def show_errors(title: str, rows: Sequence[dict[str, Any]], kind: str) -> None:
    """Prints errors, changed signs and rank correlations of one kind of effect."""
    by_sample = kind == "pg"
    print(f"\n{title}\n")
    heads = ["setting", "median error", "largest", "of norms", "signs", "signs by layer"]
    heads += ["at cosine up to", "order of layers"]
    heads += ["order of samples" if by_sample else "order of objectives"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for row in rows:
        total, layers = row[kind]["total"], row[kind]["layers"]
        if by_sample:
            order = f"{row[kind]['rank_correlation_of_samples']:.4f}"
        else:
            changed = [name for name in RISKS if row[kind]["order_changes"][name]]
            order = ", ".join(f"changes on {name}" for name in changed) or "same"
        cells = [
            row["setting"],
            f"{total['median_relative']:.0e}",
            f"{total['largest_relative']:.0e}",
            f"{total['largest_scaled']:.0e}",
            f"{total['signs']} of {total['count']}",
            f"{layers['signs']} of {layers['count']}",
            f"{layers['largest_changed']:.0e}" if layers["signs"] else "-",
            f"{row[kind]['rank_correlation_of_layers']:.4f}",
            order,
        ]
        print("| " + " | ".join(cells) + " |")


def show_objectives(rows: Sequence[dict[str, Any]]) -> None:
    """Prints the relative error of each objective's e, on the forget and on the retain risk."""
    names = list(rows[0]["g"]["objectives"]) if rows else []
    print("\nrelative error of e_u / e_r by objective\n")
    print("| setting | " + " | ".join(names) + " |\n" + "|---" * (1 + len(names)) + "|")
    for row in rows:
        errors = [row["g"]["objectives"][name] for name in names]
        cells = [" / ".join(f"{error[risk]:.0e}" for risk in RISKS) for error in errors]
        print(f"| {row['setting']} | " + " | ".join(cells) + " |")


def _refuse_what_gives_no_numbers(
    parser: argparse.ArgumentParser, options: argparse.Namespace
) -> None:
    if options.samples < 2:
        parser.error(f"--samples {options.samples}: at least 2, for there is an order of samples")
    for name in ("finetune", "steps"):
        if getattr(options, name) < 0:
            parser.error(f"--{name} {getattr(options, name)}: must not be negative")
    if not 0 < options.lr < math.inf:
        parser.error(f"--lr {options.lr:g}: must be positive")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.precision",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [setting.name for setting in precision_measure.settings()]
    parser.add_argument("--model", default="small", help="a size of pg_effect, or a folder")
    parser.add_argument("--tofu", help="a folder of TOFU; default: random tokens")
    parser.add_argument("--samples", type=int, default=16, help="to forget, and to retain")
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=OBJECTIVES)
    parser.add_argument("--settings", nargs="+", choices=names, default=names)
    parser.add_argument(
        "--finetune", type=int, default=4, help="steps to theta_0, all samples each"
    )
    parser.add_argument("--steps", type=int, default=3, help="of NPO, from theta_0 to theta")
    parser.add_argument("--lr", type=float, default=1e-4, help="of both")
    parser.add_argument(
        "--bfloat16-params",
        action="store_true",
        help="round the parameters before all settings: leaves errors of activations alone",
    )
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    return parser


if __name__ == "__main__":
    main()
