"""Effects of a Qwen 3 of Tunix (`pip install google-tunix`): a tiny one with random weights."""

import jax.numpy as jnp
from flax import nnx
from rows import LENGTH, VOCABULARY, batches, show
from tunix.models.qwen3.model import ModelConfig, Qwen3

from jaxunlearn import effects, objectives
from jaxunlearn.models import adapters

CONFIG = ModelConfig(
    num_layers=2,
    vocab_size=VOCABULARY,
    embed_dim=16,
    hidden_dim=32,
    num_heads=2,
    head_dim=8,
    num_kv_heads=1,
    rope_theta=10_000,
    norm_eps=1e-6,
    use_tied_embedding=True,
)
APPLY, PARAMS, TRAINABLE = adapters.from_nnx(Qwen3(CONFIG, rngs=nnx.Rngs(1)))


def logp(params, batch):
    """Log-probabilities of the answers' tokens, [B, S], 0 elsewhere."""
    tokens = batch["tokens"]
    places = jnp.broadcast_to(jnp.arange(LENGTH), tokens.shape)
    causal = jnp.tril(jnp.ones((len(tokens), LENGTH, LENGTH), bool))
    logits, _ = APPLY(params, tokens, places, None, causal)
    values = objectives.token_log_probs(logits, tokens)
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
