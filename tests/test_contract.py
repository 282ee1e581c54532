"""The contract: every objective x {padded, packed} x {1, 8 devices} x {jvp, vmap, gates}.

The derivative of each sample's loss along a direction, on a real (tiny) Llama, must not depend on
how it is laid out, placed or computed. The oracle is the definition (`vmap`) in float64 on padded
rows.
"""

import jax
import pytest

from benchmarks import contract
from benchmarks.contract import MODEL, NAMES, SCALE_TOLERANCE, Trees
from jaxunlearn.models import sharding


@pytest.fixture(scope="module")
def sequences():
    return contract.make_sequences()


@pytest.fixture(scope="module")
def trees():
    return contract.make_trees()


@pytest.fixture(scope="module")
def oracle(sequences, trees):
    return contract.oracle(sequences, trees)


def place(devices, trees, rows):
    if devices == 1:
        return sharding.make_mesh(devices=jax.devices()[:1]), trees, rows
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    shardings = sharding.param_shardings(MODEL, mesh)
    everywhere = jax.NamedSharding(mesh, jax.P())
    placed = Trees(
        params=jax.device_put(trees.params, shardings),
        reference=trees.reference,
        direction=jax.device_put(trees.direction, shardings),
        constants=jax.device_put(trees.constants, everywhere),
    )
    return mesh, placed, jax.device_put(rows, sharding.batch_sharding(mesh))


def agrees(sequences, trees, oracle, devices, kind, method):
    packed = contract.layout(sequences, kind)
    mesh, trees, rows = place(devices, trees, contract.make_rows(packed, trees))
    with jax.set_mesh(mesh):
        if method == "gates":
            results = contract.by_gates(rows, trees, MODEL)
        else:
            results = contract.by_definition_or_jvp(rows, trees, MODEL, method)
    for result in results:
        errors = contract.relative_errors(contract.in_order(result, packed), oracle)
        assert errors.max() <= SCALE_TOLERANCE, dict(zip(NAMES, errors, strict=True))


def test_every_objective_has_a_derivative_to_compare(oracle):
    """Where it is 0, any multiple of the loss would agree with it."""
    assert (oracle.scale > 0).all(), dict(zip(NAMES, oracle.scale.min(0), strict=True))


WAYS = [
    *(("padded", "jvp", 1), ("padded", "jvp", 8), ("packed", "jvp", 1), ("packed", "jvp", 8)),
    ("padded", "vmap", 1),
    pytest.param("padded", "vmap", 8, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("kind", "method", "devices"), WAYS)
def test_every_objective_by_jvp_and_by_definition(sequences, trees, oracle, kind, method, devices):
    agrees(sequences, trees, oracle, devices, kind, method)


@pytest.mark.parametrize(("kind", "devices"), [("padded", 1), ("packed", 1), ("packed", 8)])
def test_every_objective_by_gates(sequences, trees, oracle, kind, devices):
    agrees(sequences, trees, oracle, devices, kind, "gates")


@pytest.mark.cost  # with the compiler's optimisations
@pytest.mark.parametrize(
    ("kind", "method", "devices"),
    [
        pytest.param("padded", "jvp", 1, marks=pytest.mark.nightly),
        # It needs one sequence a row, so there is no packed cell of it.
        pytest.param("padded", "vmap", 1, marks=pytest.mark.nightly),
        pytest.param("padded", "gates", 1, marks=pytest.mark.nightly),
        pytest.param("packed", "jvp", 1, marks=pytest.mark.nightly),
        pytest.param("packed", "gates", 1, marks=pytest.mark.slow),
        pytest.param("packed", "jvp", 8, marks=pytest.mark.slow),
    ],
)
def test_every_objective_by_the_optimising_compiler(
    sequences, trees, oracle, devices, kind, method
):
    """Users have its code, not that of the quick compilation of the other tests."""
    jax.clear_caches()
    agrees(sequences, trees, oracle, devices, kind, method)
