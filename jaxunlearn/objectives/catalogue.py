"""What the docstrings and signatures of losses say of them: title, formula, paper, arguments.

The docstring is the one source of a loss's formula: its first sentence is the title, with the paper
as (arXiv NUMBER); its first indented block is the formula; hyper-parameters are under `Args:`.
"""

import inspect
import re
import textwrap
from typing import Any, NamedTuple

from jaxunlearn.objectives.registry import Objective

_PAPER = re.compile(r"arXiv \d{4}\.\d{4,5}")


class Hyper(NamedTuple):
    """A hyper-parameter of a loss.

    Attributes:
      name: its name.
      value: that it has; the default unless another one was given to `get`.
      text: what it does; "" where the docstring does not say.
    """

    name: str
    value: Any
    text: str


class Description(NamedTuple):
    """A loss in words.

    Attributes:
      title: one sentence.
      formula: of the loss of one sequence or position, lines of plain text; "" where the docstring
        has none.
      paper: such as "arXiv 2404.05868", None where the docstring names none.
      arrays: the arrays that it takes, see `signature.ARRAYS`.
      hyper: its hyper-parameters, sorted by name.
    """

    title: str
    formula: str
    paper: str | None
    arrays: tuple[str, ...]
    hyper: tuple[Hyper, ...]


def describe(objective: Objective) -> Description:
    """Describes an objective or a retain term, of the registry or of your own.

    Args:
      objective: from `get` or `get_retain`.

    >>> from jaxunlearn.objectives import get
    >>> found = describe(get("npo"))
    >>> found.formula, found.paper, found.hyper[0][:2]
    ('L = (2 / beta) log(1 + (p(s) / q(s))^beta)', 'arXiv 2404.05868', ('beta', 0.1))
    """
    text = inspect.getdoc(objective.definition.loss) or ""
    first, _, rest = text.partition("\n\n")
    sentence = " ".join(first.split())
    paper = _PAPER.search(sentence)
    arguments = _arguments(text)
    return Description(
        title=_without_paper(sentence),
        formula=_formula(rest),
        paper=paper.group() if paper else None,
        arrays=objective.arrays,
        hyper=tuple(Hyper(name, value, arguments.get(name, "")) for name, value in objective.hyper),
    )


def _without_paper(sentence: str) -> str:
    """A sentence without the number of the paper; a name next to it in brackets stays."""
    return re.sub(r" \(\)", "", re.sub(rf"(, )?{_PAPER.pattern}", "", sentence))


def _formula(text: str) -> str:
    """The first paragraph that is indented by four, before any section such as `Args:`."""
    for paragraph in text.split("\n\n"):
        if re.match(r"[A-Z]\w*:\n", paragraph):
            break
        if paragraph.startswith("    "):
            return textwrap.dedent(paragraph).strip()
    return ""


def _arguments(text: str) -> dict[str, str]:
    """{name: what it is} under `Args:`."""
    section = re.search(r"^Args:\n((?:  .*\n?)+)", text, re.M)
    entries = re.split(r"^  (?=\w)", section.group(1), flags=re.M) if section else []
    pairs = (" ".join(entry.split()).partition(": ") for entry in entries if entry.strip())
    return {name: words for name, _, words in pairs}
