"""The texts of samples, and the record of starts."""

import jax

from jaxunlearn.record import starts, texts
from jaxunlearn.record.folder import RunFolder
from jaxunlearn.record.texts import SampleText


def test_texts_come_back_as_they_were(tmp_path):
    written = [
        SampleText("forget", 0, 'Who "is"\n he?', "نعم <b>", ["ن", "عم", "</s>"]),
        SampleText("retain", 0, "Who?", "She.", []),
    ]
    texts.write(tmp_path, written)
    assert texts.read(tmp_path) == written


def test_a_run_of_before_has_no_texts(tmp_path):
    assert texts.read(tmp_path) == [] and starts.read(RunFolder(tmp_path)) == []


def test_every_start_has_a_line(tmp_path):
    folder = RunFolder(tmp_path)
    for _ in range(2):
        starts.note(folder, jax.devices())
    first, second = starts.read(folder)
    assert first["devices"] == len(jax.devices()) and first["processes"] == 1
    assert second["versions"]["jax"] == jax.__version__
