"""Effects of a Flax Linen model: its variables are the parameters, `apply` is the function."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from rows import VOCABULARY, batches, show

from jaxunlearn import effects, objectives


class Model(nn.Module):
    """Two dense layers over the running mean of token embeddings."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(VOCABULARY, 12, name="embed")(tokens)
        x = jnp.cumsum(x, axis=1) / jnp.arange(1, x.shape[1] + 1)[:, None]
        for _ in range(2):
            x = x + nn.tanh(nn.Dense(12)(x))
        return nn.Dense(VOCABULARY, name="head")(x)


data = batches()
params = Model().init(jax.random.key(1), data["unlearn"]["tokens"])
logp = objectives.LabelLogProbs(lambda params, batch: Model().apply(params, batch["tokens"]))
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
