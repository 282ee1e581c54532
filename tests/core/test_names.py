"""Hints for misspelt names, and the search path for modules that a configuration names."""

import sys

import pytest

from jaxunlearn.core import names


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("lrr", "; perhaps you meant 'lr'"),
        ("LR", "; perhaps you meant 'lr'"),
        ("Epoch", "; perhaps you meant 'epochs'"),
        ("zzz", ""),
        ("", ""),
    ],
)
def test_the_nearest_name(word, hint):
    assert names.nearest(word, ("lr", "epochs")) == hint


def test_names_need_not_be_text():
    assert names.nearest("tru", (True, False)) == "; perhaps you meant 'True'"


def test_names_are_shown_as_they_are_spelt():
    assert names.nearest("tofu", ("TOFU", "other")) == "; perhaps you meant 'TOFU'"


def test_the_working_directory_is_searched_last_and_only_on_request(monkeypatch):
    installed = [path for path in sys.path if path]
    monkeypatch.setattr(sys, "path", list(installed))
    names.search_working_directory("npo", None, "gd")
    assert sys.path == installed
    names.search_working_directory("my_losses:mine", None)
    names.search_working_directory(None, "my_losses:other")
    assert sys.path == [*installed, ""]
