"""The inputs of the benchmark of precision: a model away from where it started, and samples."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import pg_jobs, train_lengths
from jaxunlearn import data
from jaxunlearn.core.trees import Tree
from jaxunlearn.data.packing import Packed
from jaxunlearn.data.planning import Sample
from jaxunlearn.models import decoder, hf
from jaxunlearn.models.decoder import DecoderConfig
from jaxunlearn.objectives import registry, rmu_target
from jaxunlearn.training.arrays import REF_FINAL_HIDDEN, REF_LOGP
from jaxunlearn.training.batch import Batch, Constants, Rows
from jaxunlearn.training.losses import FineTuning, Loss, Term, UnlearnLoss
from jaxunlearn.training.references import label_references, reference_head
from jaxunlearn.training.step import Trainer, init_state, optimizer

SPLITS = ("forget05", "retain_perturbed")
REFUSAL_COUNT = (24, 8)  # (tokens, labels) of a synthetic substitute answer


class Packs(NamedTuple):
    """Every set of samples as one packed batch.

    Attributes:
      forget: D_u.
      retain: D_r.
      substitute: a refusal for each sample of D_u.
      alone: D_u, one sample a row.
    """

    forget: Packed
    retain: Packed
    substitute: Packed
    alone: Packed


class Job(NamedTuple):
    """What is measured.

    Attributes:
      model: its configuration, in float32.
      reference: theta_0, the parameters before unlearning, in numpy.
      params: theta, where the effects are measured, in numpy.
      packs: the samples.
      source: of the samples, for the table.
    """

    model: DecoderConfig
    reference: Tree
    params: Tree
    packs: Packs
    source: str


class Training(NamedTuple):
    """How theta_0 and theta come about; a step reads all samples of its sets.

    Attributes:
      finetune_steps: from the model to theta_0, on D_u and D_r.
      unlearn_steps: from theta_0 to theta, of NPO on D_u.
      lr: of both, by AdamW.
    """

    finetune_steps: int
    unlearn_steps: int
    lr: float


def make_job(model: str, source: str | None, samples: int, training: Training) -> Job:
    """Reads or draws model and samples, and trains both sets of parameters.

    Args:
      model: a key of `pg_jobs.MODELS`, or a folder in the format of Hugging Face.
      source: a folder of TOFU, for a model with a tokenizer; None draws random tokens.
      samples: of D_u, and of D_r.
      training: the steps.

    Raises:
      ValueError: neither a size nor a folder, or TOFU for a model without a tokenizer.
    """
    if Path(model).is_dir():
        config = dataclasses.replace(hf.load_config(model), dtype="float32")
        params = hf.load_params(model, config)
    elif model in pg_jobs.MODELS:
        config = dataclasses.replace(pg_jobs.MODELS[model], dtype="float32")
        params = decoder.init_params(jax.random.key(0), config)
    else:
        known = ", ".join(pg_jobs.MODELS)
        raise ValueError(f"--model {model}: neither one of {known} nor a model's folder")
    if source is None:
        sets, origin = _random_samples(config, samples), train_lengths.synthetic().source
    elif Path(model).is_dir():
        sets, origin = _tofu_samples(model, source, samples, config), f"TOFU {SPLITS[0]}"
    else:
        raise ValueError(f"--tofu {source}: --model {model} has no tokenizer; give a folder")
    forget, retain, substitute = map(_one_batch, sets)
    packs = Packs(forget, retain, substitute, data.padded(sets[0]))
    reference = _finetuned(params, config, packs, training)
    theta = _unlearned(reference, config, packs, training)
    return Job(config, on_host(reference), on_host(theta), packs, origin)


def rounded(job: Job) -> Job:
    """The job with parameters that are bfloat16 numbers, which no setting rounds any further.

    What is left of the errors comes from the other operands: activations and their gradients.
    """
    nearest = lambda tree: jax.tree.map(
        lambda x: np.asarray(jnp.asarray(x).astype(jnp.bfloat16).astype(jnp.float32)), tree
    )
    return job._replace(reference=nearest(job.reference), params=nearest(job.params))


def make_batch(job: Job, model: DecoderConfig, reference: Tree, labels: dict[str, Any]) -> Batch:
    """The rows of all objectives.

    Args:
      job: the samples.
      model: the model's configuration.
      reference: theta_0.
      labels: {"forget", "retain"}: `decoder.Outputs` of theta_0 on both, see `reference_outputs`.
    """
    head = reference_head(reference, [kl_term(model)])
    target = rmu_target(jax.random.key(1), model.hidden_size)
    return Batch(
        forget=Rows(job.packs.forget, {REF_LOGP.name: labels["forget"].labels}),
        retain=Rows(job.packs.retain, {REF_FINAL_HIDDEN.name: labels["retain"].final_hidden}),
        substitute=Rows(job.packs.substitute),
        constants=Constants(target, head),
    )


def reference_outputs(model: DecoderConfig, reference: Tree, packs: Packs) -> dict[str, Any]:
    """What objectives read of theta_0 on D_u and D_r."""
    outputs = lambda packed: label_references(reference, packed, model=model, tap=None)
    return {"forget": outputs(packs.forget), "retain": outputs(packs.retain)}


def term(name: str, model: DecoderConfig) -> Term:
    """An unlearning objective on D_u; those of hidden states read them half way up."""
    return Term(registry.get(name), model, "sequence_sum", model.num_layers // 2, "forget")


def kl_term(model: DecoderConfig) -> Term:
    """The retain term KL on D_r."""
    return Term(registry.get_retain("kl"), model, "sequence_sum", 0, "retain")


def on_host(tree: Tree) -> Tree:
    """A tree in numpy."""
    return jax.tree.map(np.asarray, tree)


def _finetuned(params: Tree, model: DecoderConfig, packs: Packs, training: Training) -> Tree:
    def loss(params: Tree, packs: Packs) -> tuple[jax.Array, dict[str, jax.Array]]:
        mean_loss = FineTuning(model)
        forget, retain = (mean_loss(params, Rows(p))[0] for p in (packs.forget, packs.retain))
        return forget + retain, {}

    return _trained(params, loss, packs, training.finetune_steps, training.lr)


def _unlearned(reference: Tree, model: DecoderConfig, packs: Packs, training: Training) -> Tree:
    labels = label_references(reference, packs.forget, model=model, tap=None).labels
    batch = Batch(Rows(packs.forget, {REF_LOGP.name: labels}))
    loss = UnlearnLoss(term("npo", model))
    return _trained(reference, loss, batch, training.unlearn_steps, training.lr)


def _trained(params: Tree, loss: Loss, batch: Any, steps: int, lr: float) -> Tree:
    tx = optimizer()
    # The trainer donates its state; the caller keeps these parameters.
    trainer = Trainer(init_state(jax.tree.map(jnp.copy, params), tx), loss, tx)
    with jax.default_matmul_precision("highest"):
        for _ in range(steps):
            trainer.update(batch, lr)
    return trainer.params


def _one_batch(samples: list[Sample]) -> Packed:
    longest = max(len(sample.tokens) for sample in samples)
    plan = data.plan_dataset(samples, max_width=max(longest, 256), target_tokens=2**30)
    (packed,) = data.dataset_batches(samples, plan)
    return packed


def _random_samples(config: DecoderConfig, count: int) -> list[list[Sample]]:
    lengths = train_lengths.synthetic().splits
    counts = [*(lengths[split][:count] for split in SPLITS), [REFUSAL_COUNT] * count]
    return [
        list(pg_jobs.texts(pairs, config.vocab_size, seed)) for seed, pairs in enumerate(counts)
    ]


def _tofu_samples(model: str, source: str, count: int, config: DecoderConfig) -> list[list[Sample]]:
    tokenizer = data.load_tokenizer(model)
    encoder = data.Encoder(tokenizer, context=config.context, too_long="error")
    rows = [data.load_split(source, split)[:count] for split in SPLITS]
    refusals = data.Refusals(rows[0], data.load_refusals(source), encoder.one, seed=0)
    encoded = [encoder.encode(part, split)[0] for part, split in zip(rows, SPLITS, strict=True)]
    return [*encoded, [refusals.draw(i, None) for i in range(len(rows[0]))]]
