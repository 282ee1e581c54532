"""Effects of LoRA in a Flax NNX model: the adapter says which leaves are trainable."""

import jax.numpy as jnp
from flax import nnx
from rows import VOCABULARY, batches, show

from jaxunlearn import effects, objectives
from jaxunlearn.models import adapters


class Model(nnx.Module):
    """Two dense layers with LoRA over the running mean of token embeddings."""

    def __init__(self, rngs):
        options = dict(lora_rank=2, rngs=rngs)
        # As after some steps: before the first one B is zero.
        options["b_initializer"] = nnx.initializers.normal(0.1)
        self.embed = nnx.Embed(VOCABULARY, 12, rngs=rngs)
        self.layers = nnx.List([nnx.LoRALinear(12, 12, **options) for _ in range(2)])
        self.head = nnx.Linear(12, VOCABULARY, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        x = jnp.cumsum(x, axis=1) / jnp.arange(1, x.shape[1] + 1)[:, None]
        for layer in self.layers:
            x = x + nnx.tanh(layer(x))
        return self.head(x)


data = batches()
apply, params, lora = adapters.from_nnx(Model(nnx.Rngs(1)), wrt=nnx.LoRAParam)
part = {"trainable": lora}
logp = objectives.LabelLogProbs(lambda params, batch: apply(params, batch["tokens"]))
risk = objectives.BatchLoss(objectives.get_retain("gd"), logp)
ascent = objectives.BatchLoss(objectives.get("ga"), logp)  # `get` knows the others, with references

# G-effects: the gradient of each risk, times that of the objective.
risks = {d: effects.dataset_gradient(risk, params, [data[d]], **part).gradient for d in data}
update = effects.dataset_gradient(ascent, params, [data["unlearn"]], **part).gradient
e = {d: effects.g_effect_between(risks[d], update, by="total").value for d in risks}

# PG-effects: what each sample, token and layer of the data to forget has to do with each risk.
pg = {
    by: effects.pg_effect(logp, params, [data["unlearn"]], risks, by=by, **part)
    for by in ("sample", "token", "layer")
}
layers = effects.layer_names(params, **part)
show(layers, e, pg)
