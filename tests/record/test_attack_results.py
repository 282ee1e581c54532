"""Results of attacks: which are used again, how they are ordered, and what is made of them."""

import json

import pytest

from jaxunlearn.config import Config, Objective
from jaxunlearn.core import files
from jaxunlearn.metrics.relearning import Settings
from jaxunlearn.record import attack_results
from jaxunlearn.record.folder import BASE, RETRAINED, RunFolder

SETTINGS = Settings(steps=2, lr=1e-3, batch_size=4)
CONFIG = Config(name="tiny", objectives={"npo": Objective(), "ga": Objective()})
ATTACKS = ("5", "20", "all", "benign", "int8")


def record(model, attack, step, es):
    unseen = None if attack == "all" else es / 2
    return {
        "model": model, "attack": attack, "samples": 5, "step": step, "forget_nll": 1.0 - es,
        "forget_es": es, "unseen_nll": 0.0, "unseen_es": unseen,
    }  # fmt: skip


def write(run, model, attack, strengths=(0.1, 0.2, 0.8), settings=SETTINGS):
    before = {"forget_es": 0.9, "unseen_es": None if attack == "all" else 0.45}
    part = {
        "settings": attack_results.key(settings, attack, (1, 2)),
        "before": before,
        "records": [record(model, attack, step, es) for step, es in enumerate(strengths)],
        "layers": [{"model": model, "attack": attack, "layer": "embed"}],
    }
    files.write_json(RunFolder(run).attack(model, attack), part)
    return part


class TestParts:
    def test_a_result_is_read_as_it_was_written(self, tmp_path):
        part = write(tmp_path, "npo", "5")
        assert attack_results.read_part(tmp_path, "npo", "5") == part
        assert RunFolder(tmp_path).attack("npo", "5") == tmp_path / "relearn/npo-5.json"

    def test_rounding_does_not_depend_on_the_settings_of_fine_tuning(self):
        other = SETTINGS._replace(lr=1.0)
        for attack in ATTACKS:
            same = attack_results.key(SETTINGS, attack, (1,)) == attack_results.key(
                other, attack, (1,)
            )
            assert same == (attack == "int8")
        keys = [attack_results.key(SETTINGS, "5", ids) for ids in ((1, 2), (1, 3))]
        assert keys[0] != keys[1]


class TestMerge:
    def test_models_are_as_configured_and_attacks_grow(self, tmp_path):
        for model in (RETRAINED, "ga", "npo"):
            for attack in reversed(ATTACKS):
                write(tmp_path, model, attack)
        write(tmp_path, BASE, "int8")
        attack_results.write_tables(RunFolder(tmp_path), CONFIG, SETTINGS)
        folder = RunFolder(tmp_path)
        rows = files.records(folder.relearn_records)
        order = list(dict.fromkeys((row["model"], row["attack"]) for row in rows))
        attacked = ("npo", "ga", RETRAINED)
        assert order == [(BASE, "int8"), *((m, a) for m in attacked for a in ATTACKS)]
        assert len(files.records(folder.relearn_layers)) == len(order)
        summary = attack_results.read(tmp_path)
        assert list(summary["models"]) == [BASE, *attacked]
        assert summary["settings"] == SETTINGS._asdict()
        assert attack_results.fine_tuning_attacks(summary) == list(ATTACKS[:-1])

    def test_results_of_other_settings_stay_but_are_in_no_table(self, tmp_path):
        write(tmp_path, BASE, "int8")
        write(tmp_path, "npo", "5", settings=SETTINGS._replace(steps=9))
        write(tmp_path, "npo", "20")
        attack_results.write_tables(RunFolder(tmp_path), CONFIG, SETTINGS)
        assert list(attack_results.read(tmp_path)["models"]["npo"]["attacks"]) == ["20"]
        assert RunFolder(tmp_path).attack("npo", "5").exists()

    def test_a_torn_result_and_names_that_begin_alike_are_no_results(self, tmp_path):
        write(tmp_path, BASE, "int8")
        write(tmp_path, "npo", "5")
        write(tmp_path, "npo-gd", "5")
        write(tmp_path, "npo2", "5")
        (RunFolder(tmp_path).attacks / "npo-20.json.tmp").write_text('{"sett')
        attack_results.write_tables(RunFolder(tmp_path), CONFIG, SETTINGS)
        models = attack_results.read(tmp_path)["models"]
        assert list(models) == [BASE, "npo"] and list(models["npo"]["attacks"]) == ["5"]

    def test_no_summary_before_the_first_merge(self, tmp_path):
        assert attack_results.read(tmp_path) is None


class TestSummary:
    def test_steps_to_recover_of_all_samples_and_of_those_not_shown(self, tmp_path):
        parts = {("npo", attack): write(tmp_path, "npo", attack) for attack in ("5", "all")}
        entry = attack_results.summarise(parts)["models"]["npo"]
        assert (entry["forget_es"], entry["forget_nll"]) == (0.1, 0.9)
        few, every = entry["attacks"]["5"], entry["attacks"]["all"]
        assert few["whole"]["step"] == every["whole"]["step"] == 2  # 0.5 is half-way back
        assert few["unseen"]["target"] == pytest.approx(0.05 + 0.5 * (0.45 - 0.05))
        assert every["unseen"] is None and every["final_unseen_es"] is None
        assert few["final_forget_es"] == 0.8

    def test_it_is_plain_json(self, tmp_path):
        parts = {("npo", "5"): write(tmp_path, "npo", "5")}
        summary = attack_results.summarise(parts)
        assert json.loads(json.dumps(summary)) == summary
