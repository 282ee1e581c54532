"""The table of suites, from which names, definitions and conditions derive."""

import pytest

from jaxunlearn.data import SourceError
from jaxunlearn.evaluation import suites
from jaxunlearn.evaluation.suite import Suite
from jaxunlearn.evaluation.suites import SUITES, SuiteEntry, make_suites, select_suites
from jaxunlearn.metrics.definitions import Definition


def test_names_are_selected_once_and_all_stands_for_every_suite():
    assert select_suites([]) == ()
    assert select_suites(["uwc", "mia", "uwc"]) == ("uwc", "mia")
    assert select_suites(["mia", "all"]) == tuple(SUITES)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(
        ValueError,
        match=r"evaluate.suites \(--suites\): no suite 'tofo'; there are: tofu, memorization, mia,"
        r" uwc, all; perhaps you meant 'tofu'",
    ):
        select_suites(["mia", "tofo"])


def test_definitions_of_all_suites_have_their_own_names():
    definitions = suites.all_definitions()
    assert len(definitions) == sum(len(entry.definitions) for entry in SUITES.values())
    assert all(name == definition.name for name, definition in definitions.items())


def test_a_row_of_the_table_is_a_suite(monkeypatch, context_of):
    """Nothing but the row is needed for a suite to be selected, made and described."""
    definition = Definition("length", 1, "mean length")
    suite = Suite({"version": 1}, lambda name, params: [])
    monkeypatch.setitem(SUITES, "length", SuiteEntry(lambda context: suite, {"length": definition}))
    context = context_of()
    evaluation = make_suites(context, select_suites(["length"]))
    assert evaluation.context is context and evaluation.suites == {"length": suite}
    assert suites.all_definitions()["length"] is definition


class Unreachable:
    """Sources whose optional splits cannot be read, as when the hub does not answer."""

    def __init__(self, sources):
        self.require = sources.require

    def find(self, split):
        raise SourceError(f"{split}: the hub did not answer")


@pytest.mark.parametrize("name", ["tofu", "memorization", "mia"])
def test_a_source_that_cannot_be_read_drops_no_set(small, context_of, name):
    """A set that is left out changes the meaning of the numbers: it must not happen silently."""
    with pytest.raises(SourceError, match="the hub did not answer"):
        make_suites(context_of(sources=Unreachable(small.sources)), [name])
