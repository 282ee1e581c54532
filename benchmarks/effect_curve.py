"""FLOPs of an exact G-effect curve of Llama-2-7B, against the official recipe; nothing is executed.

    python -m benchmarks.effect_curve [--lengths FILE] [--remat none|full] [--json FILE]

The curve has 13 points on 200 forget and 400 retain samples. Here a point is grad R(D_r), and
grad R(D_u) and grad L_u from one shared forward pass (and for ga one backward pass: L_u is - R),
each over every sample once, on packed rows.
The official code (github.com/tmlr-group/G-effect) estimates each gradient by a running mean over
micro-batches of 4 samples padded to 500 tokens: 192 forward and 192 backward passes a point, and
for objectives with a reference 48 forward passes of that; here they read its log-probabilities,
computed once a curve. Both sides are counted on this library's model with the same --remat, so that
the recipe too skips most attention scores of later positions.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import record, train_lengths
from benchmarks.pg_jobs import MODELS, texts
from jaxunlearn.core import trees
from jaxunlearn.core.trees import Tree
from jaxunlearn.data import packing, planning
from jaxunlearn.data.packing import Packed
from jaxunlearn.effects import count_flops
from jaxunlearn.effects.programs import LossesFn, SingleLoss, gradient_sums, make_probe
from jaxunlearn.models import decoder
from jaxunlearn.models.decoder import DecoderConfig
from jaxunlearn.objectives import registry
from jaxunlearn.training.arrays import REF_LOGP
from jaxunlearn.training.batch import Batch, Rows
from jaxunlearn.training.losses import GROUPING, Risk, RiskAndObjective, Term, TokenLogProbs

POINTS = 13
PASSES, REFERENCE_PASSES, MICRO_BATCH, PADDED = 192, 48, 4, 500
OBJECTIVES = ("ga", "wga", "npo", "tnpo")
WIDTHS = (128, 256, 512, 1024)
FORGET, RETAIN = "forget05", "retain_perturbed"


@dataclasses.dataclass(frozen=True)
class Curve:
    """The model and the samples of the curve.

    Attributes:
      model: the model's configuration.
      params: its parameters as shapes.
      forget: D_u.
      retain: D_r.
      width: tokens of a row; None lets the library choose.
    """

    model: DecoderConfig
    params: Tree
    forget: list[planning.Sample]
    retain: list[planning.Sample]
    width: int | None

    def batches(self, sequences: list[planning.Sample]) -> list[Packed]:
        plan = planning.plan_dataset(sequences, width=self.width, max_width=self.model.context)
        return packing.dataset_batches(sequences, plan)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    lengths = train_lengths.load(options.lengths)
    model = dataclasses.replace(MODELS["7b"], remat=options.remat)
    curve = make_curve(model, lengths, width=options.width)
    rows, shares = costs(curve), real_shares(curve)
    print(f"{lengths.source}; nothing is executed")
    show(rows, shares, curve)
    if options.json:
        result = record.about("effect_curve", arguments) | {
            "lengths": lengths.source,
            "config": dataclasses.asdict(model),
            "rows": rows,
            "real_shares": shares,
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def make_curve(
    model: DecoderConfig, lengths: train_lengths.Lengths, *, width: int | None = None
) -> Curve:
    """The job on samples of these lengths."""
    forget, retain = (
        list(texts(lengths.splits[split], model.vocab_size, seed=0)) for split in (FORGET, RETAIN)
    )
    return Curve(model, decoder.abstract_params(model), forget, retain, width)


def costs(curve: Curve) -> list[dict[str, Any]]:
    """FLOPs of the whole curve, one row for each way.

    Returns:
      [{"way", "flops", "of_recipe": over the recipe's 192 + 192 passes, "of_recipe_and_reference":
      over these and the passes of the reference, where the objective has one}]
    """
    recipe, reference = (POINTS * n for n in official_point(curve.model, curve.params))
    cached = reference_pass(curve)
    points = [
        (name, POINTS * exact_point(curve, name), "ref" in registry.get(name).needs)
        for name in OBJECTIVES
    ]
    points.append(("npo, gates for the risks", POINTS * gates_point(curve, "npo"), True))
    rows = [{"way": "official recipe", "flops": recipe, "of_recipe": 1.0}]
    for way, cost, referenced in points:
        total = cost + cached * referenced
        row = {"way": way, "flops": total, "of_recipe": total / recipe}
        row["of_recipe_and_reference"] = total / (recipe + reference * referenced)
        rows.append(row)
    return rows


def official_point(model: DecoderConfig, params: Tree) -> tuple[int, int]:
    """One point of the recipe, and its reference's: the likelihood of every position."""
    plain = dataclasses.replace(model, head_chunk=PADDED)  # all logits at once, as PyTorch has them
    text = planning.Sample(np.zeros(PADDED, np.int32), 1)
    rows = Rows(packing.padded([text] * MICRO_BATCH))
    gradient = _gradients(SingleLoss(Risk(plain, "token_mean")), params, rows)
    return PASSES * gradient, REFERENCE_PASSES * count_flops(TokenLogProbs(plain), params, rows)


def exact_point(curve: Curve, objective: str) -> int:
    """One point as a run measures it: grad R(D_r); grad R(D_u) and grad L_u from one forward."""
    both = RiskAndObjective(_term(curve, objective))
    forget = sum(_gradients(both, curve.params, batch) for batch in _forget_batches(curve))
    return _retain_gradient(curve) + forget


def gates_point(curve: Curve, objective: str) -> int:
    """One point that forms grad L_u alone, and both risks' effects by gates along it."""
    term, risk = SingleLoss(_term(curve, objective)), _risk(curve)
    forget = _forget_batches(curve)
    total = sum(_gradients(term, curve.params, batch) for batch in forget)

    def gate_gradient(params, rows, direction):
        gates = make_probe(params, (direction,), grouping=GROUPING)["gates"]
        probe = lambda gates: {"directions": (direction,), "gates": gates}
        return jax.grad(lambda gates: risk(params, rows, probe(gates))[0])(gates)

    rows = [batch.forget for batch in forget] + _retain_rows(curve)
    return total + sum(count_flops(gate_gradient, curve.params, r, curve.params) for r in rows)


def reference_pass(curve: Curve) -> int:
    """log p of D_u under the model before unlearning, once a curve."""
    logp = TokenLogProbs(curve.model)
    return sum(count_flops(logp, curve.params, batch.forget) for batch in _forget_batches(curve))


def real_shares(curve: Curve) -> dict[str, dict[str, float]]:
    """Share of real tokens of a pass over D_u and D_r, by width of a row."""
    widths = {"chosen": None} | {str(width): width for width in WIDTHS}
    shares = {}
    for name, sequences in (("forget", curve.forget), ("retain", curve.retain)):
        longest = max(len(s.tokens) for s in sequences)
        shares[name] = {
            label: packing.real_token_share(
                dataclasses.replace(curve, width=width).batches(sequences)
            )
            for label, width in widths.items()
            if width is None or longest <= width <= curve.model.context
        }
        shares[name]["padded"] = sum(len(s.tokens) for s in sequences) / (PADDED * len(sequences))
    return shares


def show(rows: list[dict[str, Any]], shares: dict[str, dict[str, float]], curve: Curve) -> None:
    """Prints both tables."""
    sizes = f"{len(curve.forget)} forget + {len(curve.retain)} retain samples"
    print(f"{POINTS} points, {sizes}, remat {curve.model.remat}")
    print(f"{'way':<28}{'FLOPs':>10}{'of recipe':>11}{'and its reference':>19}")
    for row in rows:
        ratios = row["of_recipe"], row.get("of_recipe_and_reference", 1.0)
        print(f"{row['way']:<28}{row['flops']:>10.2e}{ratios[0]:>10.3f}x{ratios[1]:>18.3f}x")
    for name, by_width in shares.items():
        print(f"real tokens, {name}: " + ", ".join(f"{w} {s:.1%}" for w, s in by_width.items()))


def _term(curve: Curve, objective: str) -> Term:
    return Term(registry.get(objective), curve.model, "sequence_sum", 0, "forget")


def _risk(curve: Curve) -> Risk:
    return Risk(curve.model, "sequence_sum")


def _retain_rows(curve: Curve) -> list[Rows]:
    return [Rows(packed) for packed in curve.batches(curve.retain)]


def _forget_batches(curve: Curve) -> list[Batch]:
    """Batches of an objective; the reference's values do not matter here."""
    return [
        Batch(Rows(p, {REF_LOGP.name: np.zeros(p.label_tokens.shape, np.float32)}))
        for p in curve.batches(curve.forget)
    ]


def _retain_gradient(curve: Curve) -> int:
    risk = SingleLoss(_risk(curve))
    return sum(_gradients(risk, curve.params, rows) for rows in _retain_rows(curve))


def _gradients(losses_fn: LossesFn, params: Tree, batch: Tree) -> int:
    shardings = trees.named_shardings(params)
    return count_flops(gradient_sums, params, batch, losses_fn=losses_fn, shardings=shardings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.effect_curve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--lengths", type=Path, help="from benchmarks.train_lengths")
    parser.add_argument("--width", type=int, help="tokens of a row; the library chooses")
    parser.add_argument("--remat", choices=("none", "dots", "full"), default="none")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    return parser


if __name__ == "__main__":
    main()
