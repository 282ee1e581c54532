"""Rotary frequencies that old files hold next to the weights."""

from typing import Any

import numpy as np

from jaxunlearn.models.decoder import DecoderConfig
from jaxunlearn.models.decoder.modules import rope_frequencies
from jaxunlearn.models.hf.tensors import FLOATS


def check_frequencies(where: str, values: Any, config: DecoderConfig) -> None:
    """Compares rotary frequencies with those that config.json implies, which are computed with.

    Args:
      where: the file and the tensor, for the message.
      values: a slice of a safetensors file.
      config: the model.

    Raises:
      ValueError: they differ by more than 16-bit floats round: the model would answer otherwise
        than the one that was saved.
    """
    expected = [rope_frequencies(config, windowed=windowed) for windowed in (False, True)]
    if tuple(values.get_shape()) == expected[0].shape and values.get_dtype() in FLOATS:
        found = values[:].astype(np.float64)
        if any(np.allclose(found, each, rtol=0.02, atol=1e-7) for each in expected):
            return
    raise ValueError(
        f"{where}: is not what config.json's rope_theta and rope_scaling make of it; correct"
        " config.json, or remove the tensor"
    )
