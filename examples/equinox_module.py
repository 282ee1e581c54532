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


PARAMS, STATIC = eqx.partition(Model(jax.random.key(1)), eqx.is_array)


def logp(params, batch):
    """Log-probabilities of the answers' tokens, [B, S], 0 elsewhere."""
    logits = jax.vmap(eqx.combine(params, STATIC))(batch["tokens"])
    values = objectives.token_log_probs(logits, batch["tokens"])
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
    params = PARAMS

    # G-effects: the gradient of each risk, times that of the objective.
    risks = {d: effects.dataset_gradient(risk, params, [data[d]]).gradient for d in data}
    update = effects.dataset_gradient(objective, params, [data["unlearn"]]).gradient
    e = {d: effects.g_effect_between(risks[d], update, by="total").value for d in risks}

    # PG-effects: what each sample, token and layer of the data to forget has to do with each risk.
    pg = {
        by: effects.pg_effect(logp, params, [data["unlearn"]], risks, by=by)
        for by in ("sample", "token", "layer")
    }
    layers = effects.layer_names(params)
    show(layers, e, pg["sample"], pg["token"], pg["layer"])
    return layers, e, pg


if __name__ == "__main__":
    main()
