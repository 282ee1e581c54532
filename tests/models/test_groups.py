"""The decoder's layers in the groups of the paper."""

import pytest

from jaxunlearn.models import decoder


def test_groups_are_the_papers_for_seven_billion():
    names = [f"block_{i}" for i in range(32)] + ["embed", "norm", "lm_head"]
    groups = decoder.layer_groups(names)
    assert list(groups) == ["embed", "shallow", "middle", "deep", "lm"]
    assert groups["shallow"] == tuple(f"block_{i}" for i in range(11))
    assert groups["middle"] == tuple(f"block_{i}" for i in range(11, 22))
    assert groups["deep"] == (*(f"block_{i}" for i in range(22, 32)), "norm")
    tied = decoder.layer_groups([n for n in names if n != "lm_head"], cuts=(4, 20))
    assert "lm" not in tied and len(tied["shallow"]) == 4
    with pytest.raises(ValueError, match="do not fit 32 blocks"):
        decoder.layer_groups(names, cuts=(20, 4))
