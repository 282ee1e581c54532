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

data = batches()
apply, params, _ = adapters.from_nnx(Qwen3(CONFIG, rngs=nnx.Rngs(1)))


def logits(params, batch):
    """Next-token logits; Tunix wants the places of the tokens and who attends to whom."""
    tokens = batch["tokens"]
    places = jnp.broadcast_to(jnp.arange(LENGTH), tokens.shape)
    causal = jnp.tril(jnp.ones((len(tokens), LENGTH, LENGTH), bool))
    return apply(params, tokens, places, None, causal)[0]


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
