"""Effects of a model in plain JAX that scans over stacked layers: the grouping names the stack."""

import jax
import jax.numpy as jnp
from rows import VOCABULARY, batches, show

from jaxunlearn import effects, objectives


def init(key):
    """Embeddings, two dense layers in one array, a head."""
    keys = jax.random.split(key, 3)
    return {
        "embed": jax.random.normal(keys[0], (VOCABULARY, 12)),
        "layers": {"kernel": jax.random.normal(keys[1], (2, 12, 12)) / 12**0.5},
        "head": jax.random.normal(keys[2], (12, VOCABULARY)) / 12**0.5,
    }


def forward(params, tokens):
    """Logits [B, T, VOCABULARY] from the running mean of token embeddings."""
    x = params["embed"][tokens]
    x = jnp.cumsum(x, axis=1) / jnp.arange(1, x.shape[1] + 1)[:, None]
    layer = lambda x, weights: (x + jnp.tanh(x @ weights["kernel"]), None)
    return jax.lax.scan(layer, x, params["layers"])[0] @ params["head"]


data = batches()
params = init(jax.random.key(1))
grouping = effects.Grouping(stacked={"layers": "layer"})
logp = objectives.LabelLogProbs(lambda params, batch: forward(params, batch["tokens"]))
risk = objectives.BatchLoss(objectives.get_retain("gd"), logp)
ascent = objectives.BatchLoss(objectives.get("ga"), logp)  # `get` knows the others, with references

# G-effects: the gradient of each risk, times that of the objective.
risks = {d: effects.dataset_gradient(risk, params, [data[d]]).gradient for d in data}
update = effects.dataset_gradient(ascent, params, [data["unlearn"]]).gradient
e = {d: effects.g_effect_between(risks[d], update, by="total").value for d in risks}

# PG-effects: what each sample, token and layer of the data to forget has to do with each risk.
pg = {
    by: effects.pg_effect(logp, params, [data["unlearn"]], risks, by=by, grouping=grouping)
    for by in ("sample", "token", "layer")
}
layers = effects.layer_names(params, grouping=grouping)
show(layers, e, pg)
