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


def logp(params, batch):
    """Log-probabilities of the answers' tokens, [B, S], 0 elsewhere."""
    values = objectives.token_log_probs(Model().apply(params, batch["tokens"]), batch["tokens"])
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
    params = Model().init(jax.random.key(1), data["unlearn"]["tokens"])

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
