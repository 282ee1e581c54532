"""Effects of an Equinox module: its arrays are the parameters, the rest is combined with them."""

import equinox as eqx
import jax
import jax.numpy as jnp
from rows import VOCABULARY, batches, show

from jaxunlearn import effects, objectives


class Model(eqx.Module):
    """Two linear layers over the running mean of token embeddings."""

    embed: eqx.nn.Embedding
    layers: list[eqx.nn.Linear]
    head: eqx.nn.Linear

    def __init__(self, key):
        first, second, *keys = jax.random.split(key, 4)
        self.embed = eqx.nn.Embedding(VOCABULARY, 12, key=first)
        self.layers = [eqx.nn.Linear(12, 12, key=key) for key in keys]
        self.head = eqx.nn.Linear(12, VOCABULARY, key=second)

    def __call__(self, tokens):
        x = jax.vmap(self.embed)(tokens)
        x = jnp.cumsum(x, axis=0) / jnp.arange(1, x.shape[0] + 1)[:, None]
        for layer in self.layers:
            x = x + jnp.tanh(jax.vmap(layer)(x))
        return jax.vmap(self.head)(x)


data = batches()
params, static = eqx.partition(Model(jax.random.key(1)), eqx.is_array)
logits = lambda params, batch: jax.vmap(eqx.combine(params, static))(batch["tokens"])
logp = objectives.LabelLogProbs(logits)
risk = objectives.BatchLoss(objectives.get_retain("gd"), logp)
ascent = objectives.BatchLoss(objectives.get("ga"), logp)  # `get` knows the others, with references

# G-effects: the gradient of each risk, times that of the objective.
risks = {d: effects.dataset_gradient(risk, params, [data[d]]).gradient for d in data}
update = effects.dataset_gradient(ascent, params, [data["unlearn"]]).gradient
e = {d: effects.g_effect_between(risks[d], update, by="total").value for d in risks}

# PG-effects: what each sample, token and layer of the data to forget has to do with each risk.
pg = {
    by: effects.pg_effect(logp, params, [data["unlearn"]], risks, by=by)
    for by in ("sample", "token", "layer")
}
layers = effects.layer_names(params)
show(layers, e, pg)
