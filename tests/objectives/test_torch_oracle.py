"""Losses and gradients of every objective against PyTorch, in float64, from logits.

The oracles follow the formulas literally (probabilities, Python loops over sequences); none of them
works in log space as the package does.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.objectives import registry, token_log_probs

B, T, V, D = 4, 6, 7, 5
RNG = np.random.default_rng(0)
LEAVES = {
    "logits": RNG.normal(size=(B, T, V)),
    "ref_logits": RNG.normal(size=(B, T, V)),
    "substitute_logits": RNG.normal(size=(B, T, V)),
    "substitute_ref_logits": RNG.normal(size=(B, T, V)),
    "hidden": RNG.normal(size=(B, T, D)),
    "ref_hidden": RNG.normal(size=(B, T, D)),
    "target": RNG.normal(size=D),
    "guide": np.random.default_rng(1).exponential(size=(B, T - 1)),
}
TOKENS = RNG.integers(0, V, (B, T))
SUBSTITUTE_TOKENS = RNG.integers(0, V, (B, T))
MASK = np.array([[0, 0, 1, 1, 1], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], bool)
SUBSTITUTE_MASK = np.array(
    [[0, 0, 1, 1, 0], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]], bool
)
WEIGHTS = RNG.normal(size=(B, T))  # of the losses, to sum them to one scalar


def tokens_of(x, prefix=""):
    """p_i and q_i of the labels of every sequence."""
    torch = pytest.importorskip("torch")
    tokens = SUBSTITUTE_TOKENS if prefix else TOKENS
    mask = SUBSTITUTE_MASK if prefix else MASK
    p = torch.softmax(x[f"{prefix}logits"], -1)
    q = torch.softmax(x[f"{prefix}ref_logits"], -1).detach()
    for b in range(B):
        at = np.flatnonzero(mask[b])
        yield p[b, at, tokens[b, at + 1]], q[b, at, tokens[b, at + 1]]


def per_sequence(loss):
    """An oracle that sees one sequence at a time; 0 for those without labels."""

    def losses(x, **hyper):
        torch = pytest.importorskip("torch")
        pairs = list(tokens_of(x))
        return torch.stack([loss(p, q, **hyper) if len(p) else p.sum() for p, q in pairs])

    return losses


@per_sequence
def ga(p, q):
    return p.log().sum()


@per_sequence
def gd(p, q):
    return -p.prod().log()


@per_sequence
def wga(p, q, alpha=1.0):
    return ((p**alpha).detach() * p.log()).sum()


@per_sequence
def npo(p, q, beta=0.1):
    return 2 / beta * (1 + (p.prod() / q.prod()) ** beta).log()


@per_sequence
def tnpo(p, q, beta=1.0):
    return ((2 * p**beta / (p**beta + q**beta)).detach() * p.log()).sum()


@per_sequence
def wtnpo(p, q, alpha=1.0, beta=1.0):
    return ((2 * p ** (alpha + beta) / (p**beta + q**beta)).detach() * p.log()).sum()


@per_sequence
def simnpo(p, q, beta=4.5, delta=0.0):
    return -2 / beta * (1 / (1 + (-beta * (-p.log().mean() - delta)).exp())).log()


@per_sequence
def satimp(p, q, beta1=5.0, beta2=1.0):
    return ((p**beta1 * (1 - p) ** beta2).detach() * p.log()).sum()


def guided(x):
    torch = pytest.importorskip("torch")
    pairs = zip(tokens_of(x), x["guide"].detach(), MASK, strict=True)
    losses = [(guide[np.flatnonzero(mask)] * p.log()).sum() for (p, _), guide, mask in pairs]
    return torch.stack(losses)


def po(x):
    torch = pytest.importorskip("torch")
    return torch.stack([-p.log().sum() for p, _ in tokens_of(x, "substitute_")])


def dpo(x, beta=0.1, two_over_beta=False):
    torch = pytest.importorskip("torch")
    losses = []
    pairs = zip(tokens_of(x), tokens_of(x, "substitute_"), strict=True)
    for (p, q), (sub_p, sub_q) in pairs:
        odds = (sub_p.prod() / sub_q.prod() / (p.prod() / q.prod())) ** beta
        losses.append(-(odds / (1 + odds)).log() if len(p) else p.sum())
    return torch.stack(losses) * (2 / beta if two_over_beta else 1)


def undial(x, beta=10.0):
    torch = pytest.importorskip("torch")
    onehot = torch.nn.functional.one_hot(torch.as_tensor(TOKENS), V)
    target = torch.softmax(x["ref_logits"].detach() - beta * onehot, -1).reshape(-1, V)
    loss = torch.nn.functional.cross_entropy(x["logits"].reshape(-1, V), target, reduction="none")
    return loss.reshape(B, T)


def ceu(x):
    torch = pytest.importorskip("torch")
    onehot = torch.nn.functional.one_hot(torch.as_tensor(TOKENS), V)
    target = torch.softmax(x["logits"].detach().masked_fill(onehot.bool(), -torch.inf), -1)
    loss = torch.nn.functional.cross_entropy(
        x["logits"].reshape(-1, V), target.reshape(-1, V), reduction="none"
    )
    return loss.reshape(B, T)


def kl(x):
    torch = pytest.importorskip("torch")
    q = torch.softmax(x["ref_logits"].detach(), -1)
    logp = torch.log_softmax(x["logits"], -1)
    return torch.nn.functional.kl_div(logp, q, reduction="none").sum(-1)


def rmu(x, per_dim=False):
    squares = (x["hidden"] - x["target"].detach()) ** 2
    return squares.sum(-1) / (D if per_dim else 1)


def rr(x):
    torch = pytest.importorskip("torch")
    return torch.linalg.vector_norm(x["hidden"] - x["ref_hidden"].detach(), dim=-1) ** 2


ORACLES = {n: globals()[n] for n in (*registry.names(), *registry.retain_names())}
CASES = [
    ("ga", {}),
    ("wga", {}),
    ("wga", {"alpha": 0.5}),
    ("npo", {}),
    ("npo", {"beta": 2.0}),
    ("tnpo", {}),
    ("tnpo", {"beta": 4.0}),
    ("wtnpo", {}),
    ("wtnpo", {"alpha": 1.5, "beta": 4.0}),
    ("po", {}),
    ("rmu", {}),
    ("rmu", {"per_dim": True}),
    ("dpo", {}),
    ("dpo", {"beta": 0.5, "two_over_beta": True}),
    ("simnpo", {}),
    ("simnpo", {"beta": 2.0, "delta": 0.7}),
    ("satimp", {}),
    ("satimp", {"beta1": 0.5, "beta2": 1.5}),
    ("undial", {}),
    ("undial", {"beta": 0.5}),
    ("ceu", {}),
    ("guided", {}),
    ("gd", {}),
    ("kl", {}),
    ("rr", {}),
]


GIVEN = ("logits", "ref_logits", "hidden", "ref_hidden", "target", "guide")


def arrays_of(leaves):
    """All arrays by the catalogue's names; wide ones keep every position."""
    sub = {"logits": "substitute_logits", "ref_logits": "substitute_ref_logits"}
    return {
        "logp": token_log_probs(leaves["logits"], TOKENS),
        "ref_logp": token_log_probs(leaves["ref_logits"], TOKENS),
        "mask": jnp.asarray(MASK),
        "substitute_logp": token_log_probs(leaves[sub["logits"]], SUBSTITUTE_TOKENS),
        "substitute_ref_logp": token_log_probs(leaves[sub["ref_logits"]], SUBSTITUTE_TOKENS),
        "substitute_mask": jnp.asarray(SUBSTITUTE_MASK),
        "labels": jnp.asarray(TOKENS),
    } | {n: leaves[n] for n in GIVEN}


@functools.partial(jax.jit, static_argnames="objective")
def loss_and_gradients(leaves, weights, objective):
    def scalar(leaves):
        arrays = arrays_of(leaves)
        losses = objective.loss(**{n: arrays[n] for n in objective.arrays})
        return jnp.sum(losses * (weights if losses.ndim == 2 else weights[:, 0])), losses

    return jax.grad(scalar, has_aux=True)(leaves)


@pytest.mark.parametrize(("name", "hyper"), CASES, ids=str)
def test_loss_and_gradients_are_those_of_pytorch(name, hyper):
    torch = pytest.importorskip("torch")
    get = registry.get if name in registry.names() else registry.get_retain
    x = {n: torch.tensor(v, requires_grad=True) for n, v in LEAVES.items()}
    expected = ORACLES[name](x, **hyper)
    weights = torch.tensor(WEIGHTS if expected.ndim == 2 else WEIGHTS[:, 0])
    (expected * weights).sum().backward()
    with jax.enable_x64(True):
        leaves = jax.tree.map(jnp.asarray, LEAVES)
        gradients, losses = loss_and_gradients(leaves, jnp.asarray(WEIGHTS), get(name, **hyper))
    assert losses.dtype == np.float64
    np.testing.assert_allclose(losses, expected.detach().numpy(), rtol=1e-10, atol=1e-12)
    for leaf, gradient in gradients.items():
        oracle_grad = x[leaf].grad
        target = np.zeros_like(gradient) if oracle_grad is None else oracle_grad.numpy()
        np.testing.assert_allclose(gradient, target, rtol=1e-9, atol=1e-12, err_msg=leaf)


def test_every_objective_is_compared():
    assert {name for name, _ in CASES} == {*registry.names(), *registry.retain_names()}


def test_float32_is_close_to_float64():
    everything = [registry.get(n) for n in registry.names()]
    everything += [registry.get_retain(n) for n in registry.retain_names()]
    single = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (LEAVES, WEIGHTS))
    result = jax.jit(lambda x, w: {o.name: loss_and_gradients(x, w, o) for o in everything})(
        *single
    )
    for objective in everything:
        with jax.enable_x64(True):
            double = jax.tree.map(jnp.asarray, (LEAVES, WEIGHTS))
            expected = loss_and_gradients(*double, objective)
        pairs = zip(*map(jax.tree.leaves, (result[objective.name], expected)), strict=True)
        for a, b in pairs:
            assert (a.dtype, b.dtype) == (np.float32, np.float64)
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5, err_msg=objective.name)


CLOSE = 1e-3  # how far the logits of NEAR are from the reference's


def near_leaves():
    """Float32 logits close to the reference's, with labels of probability 1e-5 or less.

    In float64 the literal formulas still have ten digits there; in float32 they have about two.
    """
    onehot = np.eye(V)[TOKENS]
    ref_logits = LEAVES["ref_logits"] - 14 * onehot
    logits = ref_logits + CLOSE * LEAVES["logits"]
    return {n: np.float32(x) for n, x in (("logits", logits), ("ref_logits", ref_logits))}


@pytest.mark.parametrize("name", ["ceu", "undial", "kl"])
def test_float32_gradients_near_the_reference_are_those_of_pytorch_in_float64(name):
    torch = pytest.importorskip("torch")
    leaves = near_leaves()
    x = {n: torch.tensor(np.float64(v), requires_grad=True) for n, v in leaves.items()}
    ORACLES[name](x).sum().backward()
    get = registry.get if name in registry.names() else registry.get_retain
    loss = get(name).loss
    arrays = {"labels": jnp.asarray(TOKENS), "ref_logits": jnp.asarray(leaves["ref_logits"])}
    inputs = {n: arrays[n] for n in get(name).arrays if n != "logits"}
    total = lambda logits: loss(logits=logits, **inputs).sum()
    gradient = jax.grad(total)(jnp.asarray(leaves["logits"]))
    assert gradient.dtype == np.float32
    target = x["logits"].grad.numpy()
    apart = np.linalg.norm(gradient - target, axis=-1) / np.linalg.norm(target, axis=-1)
    assert apart.max() < 1e-5
