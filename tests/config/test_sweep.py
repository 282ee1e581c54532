"""A sweep makes objectives that differ in nothing but the keys that are swept."""

import dataclasses

import pytest

from jaxunlearn.config import Config, ConfigError, Objective, sweep, validate

CONFIG = Config(
    objectives={"npo": Objective(hyper={"beta": 0.1}, lr=1e-4), "a.b": Objective(loss="wga")}
)


def test_values_become_objectives_in_the_place_of_theirs():
    swept = sweep(CONFIG, ["objectives.npo.hyper.beta=0.1,1,2"])
    assert list(swept.objectives) == ["npo_beta_0.1", "npo_beta_1", "npo_beta_2", "a.b"]
    assert swept.objectives["npo_beta_2"] == Objective(loss="npo", hyper={"beta": 2.0}, lr=1e-4)
    rest = dataclasses.replace(swept, objectives=CONFIG.objectives)
    assert rest == CONFIG
    validate(swept)


def test_several_keys_make_all_combinations():
    swept = sweep(CONFIG, ["objectives.npo.hyper.beta=1,2", "objectives.npo.lr=1e-5,2e-5"])
    assert list(swept.objectives)[:4] == [
        *("npo_beta_1_lr_1e_5", "npo_beta_1_lr_2e_5", "npo_beta_2_lr_1e_5", "npo_beta_2_lr_2e_5")
    ]
    assert swept.objectives["npo_beta_2_lr_1e_5"].lr == 1e-5


def test_words_and_names_with_dots():
    swept = sweep(CONFIG, ["objectives.a.b.retain=gd,kl"])
    assert [swept.objectives[f"a.b_retain_{t}"].retain for t in ("gd", "kl")] == ["gd", "kl"]
    assert swept.objectives["a.b_retain_gd"].loss == "wga"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("npo.beta", "expected objectives.NAME.KEY=VALUE"),
        ("unlearn.lr=1,2", "expected objectives.NAME.KEY=VALUE"),
        ("objectives.nop.lr=1,2", "no objective 'nop'; there are: npo, a.b; .*'npo'"),
        ("objectives.npo.lr=1,", "a value is empty"),
        ("objectives.npo.lrr=1", "unknown key 'objectives.npo_lrr_1.lrr'.*'lr'"),
        ("objectives.npo.lr=fast", "--sweep: 'objectives.npo_lr_fast.lr' must be a number"),
        ("objectives.npo.lr=[1", r"the value '\[1' is not valid YAML"),
        ("objectives.npo.hyper.beta.x=1", "'beta' has no keys such as 'x'"),
        ("objectives.npo.lr=1,1", "two objectives would be called 'npo_lr_1'"),
    ],
)
def test_a_bad_sweep_is_one_clear_error(spec, message):
    with pytest.raises(ConfigError, match=message):
        sweep(CONFIG, [spec])


def test_a_key_has_one_list_of_values():
    """Else the last value of a combination would count, under the name of all."""
    words = r"objectives\.npo\.hyper\.beta is given twice; write all its values in one list"
    with pytest.raises(ConfigError, match=words):
        sweep(CONFIG, ["objectives.npo.hyper.beta=0.1", "objectives.npo.hyper.beta=1"])
