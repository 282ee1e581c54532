"""A loss of somebody's own."""

import jax.numpy as jnp


def mine(logp, mask, *, alpha):
    return alpha * jnp.where(mask, logp, 0).sum(-1)


def logarithm_of_a_negative(logp, mask):
    total = jnp.where(mask, logp, 0).sum(-1)
    return jnp.log(total)
