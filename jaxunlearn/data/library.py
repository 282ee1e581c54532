"""The library that reads and writes tokenizers."""

import os
from typing import Any

_SILENT = "TRANSFORMERS_NO_ADVISORY_WARNINGS"


def load_transformers() -> Any:
    """The module `transformers`, imported when it is used first.

    Without PyTorch it advises to install that, for models which nothing here uses. It is silent
    during this import alone: what it has to say later, or to those who import it themselves before,
    is theirs to read.
    """
    before = os.environ.get(_SILENT)
    os.environ[_SILENT] = "1"
    try:
        import transformers
    finally:
        if before is None:
            del os.environ[_SILENT]
        else:
            os.environ[_SILENT] = before
    return transformers
