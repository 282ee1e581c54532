"""The README's example runs, and its two ways agree."""

import pathlib
import re

import numpy as np

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


def test_the_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    names: dict = {}
    exec(code, names)
    np.testing.assert_allclose(names["fast"]["retain"], names["exact"]["retain"], rtol=1e-5)
    assert names["fast"]["retain"].shape == (4,)


def test_every_file_and_target_it_names_is_there():
    root = pathlib.Path(__file__).parents[1]
    for name in re.findall(r"(?:configs|tests)/[\w.]+", README):
        assert (root / name).exists(), name
    makefile = (root / "Makefile").read_text()
    for target in re.findall(r"^make (\S+)", README, re.M):
        assert f"\n{target}:" in makefile, target
