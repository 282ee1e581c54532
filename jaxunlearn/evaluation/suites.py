"""The table of suites. To add a suite, write a module that makes it and add a row here."""

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple

from jaxunlearn.core.names import check_list, nearest
from jaxunlearn.evaluation.membership import mia_suite
from jaxunlearn.evaluation.memorization import memorization_suite
from jaxunlearn.evaluation.suite import Context, Evaluation, Suite
from jaxunlearn.evaluation.tofu import tofu_suite
from jaxunlearn.evaluation.uwc import uwc_suite
from jaxunlearn.metrics import memorization, privacy, tofu, uwc
from jaxunlearn.metrics.definitions import Definition

ALL = "all"
"""The name that selects every suite."""


class SuiteEntry(NamedTuple):
    """Properties of a suite that do not depend on data.

    Attributes:
      make: reads and encodes the data.
      definitions: what its numbers mean.
      unlearned_only: it measures unlearned models only, not the one before unlearning and not the
        retrained one.
      during_unlearning: it is cheap, and reads no other model's parameters, so that models are
        measured with it between steps of unlearning too.
      text_option: the option that says how many texts the model writes for it; scoring texts needs
        the package rouge-score.
    """

    make: Callable[[Context], Suite]
    definitions: Mapping[str, Definition]
    unlearned_only: bool = False
    during_unlearning: bool = False
    text_option: Literal["generate", "recite"] | None = None


SUITES: dict[str, SuiteEntry] = {
    "tofu": SuiteEntry(
        tofu_suite, tofu.DEFINITIONS, during_unlearning=True, text_option="generate"
    ),
    "memorization": SuiteEntry(
        memorization_suite,
        memorization.DEFINITIONS,
        during_unlearning=True,
        text_option="recite",
    ),
    "mia": SuiteEntry(mia_suite, privacy.DEFINITIONS),
    "uwc": SuiteEntry(uwc_suite, uwc.DEFINITIONS, unlearned_only=True),
}

DURING_UNLEARNING = tuple(name for name, entry in SUITES.items() if entry.during_unlearning)


def select_suites(names: Iterable[str]) -> tuple[str, ...]:
    """Checks the names of suites, and returns each once; "all" selects every suite.

    Raises:
      ValueError: an unknown name; lists the known ones and the nearest.

    >>> select_suites(["uwc", "tofu", "uwc"])
    ('uwc', 'tofu')
    >>> select_suites(["uwc", "all"])
    ('tofu', 'memorization', 'mia', 'uwc')
    """
    check_list("evaluate.suites (--suites)", names)
    unique = tuple(dict.fromkeys(names))
    for name in unique:
        if name not in (*SUITES, ALL):
            raise ValueError(
                f"evaluate.suites (--suites): no suite {name!r}; there are: {', '.join(SUITES)},"
                f" {ALL}{nearest(name, SUITES)}"
            )
    return tuple(SUITES) if ALL in unique else unique


def make_suites(context: Context, names: Iterable[str]) -> Evaluation:
    """Reads and encodes the data of some suites.

    Args:
      context: what the suites need.
      names: from `select_suites`.

    Raises:
      ValueError, OSError: data that are missing or bad.
    """
    suites = {name: SUITES[name].make(context) for name in names}
    # In another precision all numbers are others.
    model = {"dtype": context.model.dtype, "precision": context.model.precision}
    return Evaluation(
        context,
        {
            n: suite._replace(settings=suite.settings | {"model": model})
            for n, suite in suites.items()
        },
    )


def all_definitions() -> dict[str, Definition]:
    """The definitions of the numbers of every suite, by name."""
    return {
        name: definition
        for entry in SUITES.values()
        for name, definition in entry.definitions.items()
    }
