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


APPLY, PARAMS, TRAINABLE = adapters.from_nnx(Model(nnx.Rngs(1)), wrt=nnx.LoRAParam)


def logp(params, batch):
    """Log-probabilities of the answers' tokens, [B, S], 0 elsewhere."""
    values = objectives.token_log_probs(APPLY(params, batch["tokens"]), batch["tokens"])
    return jnp.where(batch["mask"], values, 0)


def risk(params, batch):
    """(sum, count): the negative log-likelihood of the answers, per row."""
    return objectives.gd(logp(params, batch), batch["mask"]).sum(), len(batch["mask"])


def objective(params, batch):
    """(sum, count): gradient ascent; any loss of `objectives` goes here, or one of your own."""
    return objectives.ga(logp(params, batch), batch["mask"]).sum(), len(batch["mask"])


def main():
    """Computes the effects, prints and returns them."""
    data = batches()
    params, part = PARAMS, {"trainable": TRAINABLE}

    # G-effects: the gradient of each risk, times that of the objective.
    risks = {d: effects.dataset_gradient(risk, params, [data[d]], **part).gradient for d in data}
    update = effects.dataset_gradient(objective, params, [data["unlearn"]], **part).gradient
    e = {d: effects.g_effect_between(risks[d], update, by="total").value for d in risks}

    # PG-effects: what each sample, token and layer of the data to forget has to do with each risk.
    pg = {
        by: effects.pg_effect(logp, params, [data["unlearn"]], risks, by=by, **part)
        for by in ("sample", "token", "layer")
    }
    layers = effects.layer_names(params, **part)
    show(layers, e, pg["sample"], pg["token"], pg["layer"])
    return layers, e, pg


if __name__ == "__main__":
    main()
