"""Every test of effects runs with strict arrays."""

import pytest


@pytest.fixture(autouse=True)
def always_strict_arrays(strict_arrays):
    """Implicit promotion of ranks or types raises in all tests of this folder."""
