"""The synthetic tables, and every figure drawn from them, made once for all tests."""

import pytest

from jaxunlearn.reporting.figures import draw
from jaxunlearn.reporting.figures.weight import pg_density
from tests.reporting.synthetic import make_tables


@pytest.fixture(scope="session")
def tables() -> dict:
    return make_tables()


@pytest.fixture(scope="session")
def drawn(tables) -> dict:
    names = ("g_effect", "plane", "harm_ratio", "risk_change", "predicted_vs_realised")
    names += ("confidence", "weights")
    figures = {name: getattr(draw, name)(tables) for name in names}
    return figures | {"pg_density": pg_density(tables, "npo")}
