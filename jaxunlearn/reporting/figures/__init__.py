"""The figures of a run, drawn with matplotlib, which needs no display."""

import contextlib
import os
import sys


def _import_matplotlib() -> None:
    """Imports matplotlib whatever backend the environment names.

    A notebook hands MPLBACKEND on to the processes it starts. If it names one that is not installed
    here, the import fails, though figures are files and need none. So matplotlib does not see it,
    and is then told of it as it would have read it.
    """
    if "matplotlib" in sys.modules:
        return
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = backend


_import_matplotlib()
