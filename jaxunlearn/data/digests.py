"""Digests of data, which say whether they are still the same."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from jaxunlearn.data.planning import Sample


def of_samples(samples: Iterable[Sample]) -> str:
    """The SHA-256 of encoded samples, in their order: tokens and first labels."""
    return of_parts(
        part
        for sample in samples
        for part in (str(sample.first_label).encode(), sample.tokens.tobytes())
    )


def of_json(value: Any) -> str:
    """The SHA-256 of plain JSON, whatever the order of its keys."""
    return of_parts([json.dumps(value, sort_keys=True).encode()])


def of_parts(parts: Iterable[bytes]) -> str:
    """The SHA-256 of parts with their lengths, so that no two lists of parts have one digest."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(str(len(part)).encode() + b":" + part)
    return digest.hexdigest()
