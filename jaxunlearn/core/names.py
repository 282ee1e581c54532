"""Names that users type: hints for misspelt ones, and modules named in configurations."""

import difflib
import itertools
import sys
from collections.abc import Container, Iterable


def nearest(word: str, words: Iterable[str]) -> str:
    """Returns a hint for an error message, or "" where no known name is similar.

    Capital letters do not count: a paper's NPO is found as npo.

    Args:
      word: the unknown name.
      words: the known names.

    >>> nearest("tnop", ["ga", "npo", "tnpo"])
    "; perhaps you meant 'tnpo'"
    >>> nearest("colour", ["ga", "npo", "tnpo"])
    ''
    """
    # Of names that differ in case alone the first stands for all.
    known: dict[str, str] = {}
    for name in map(str, words):
        known.setdefault(name.casefold(), name)
    close = difflib.get_close_matches(word.casefold(), known, n=1, cutoff=0.5)
    return f"; perhaps you meant {known[close[0]]!r}" if close else ""


def numbered(name: str, taken: Container[str], pattern: str) -> str:
    """Returns a name, or the first of name 2, name 3, .. that is not taken.

    Args:
      name: the name.
      taken: the names that are.
      pattern: how a number is added, such as "{} ({})".

    >>> numbered("a", ["a", "a (2)"], "{} ({})"), numbered("b", ["a"], "{} ({})")
    ('a (3)', 'b')
    """
    more = (pattern.format(name, number) for number in itertools.count(2))
    return next(free for free in itertools.chain([name], more) if free not in taken)


def shortened(text: str) -> str:
    """Returns the first words of a text, on one line, for an error message.

    >>> shortened("two\\nlines")
    'two lines'
    """
    words = " ".join(text.split())
    return words if len(words) <= 160 else f"{words[:160]} …"


def check_list(key: str, names: Iterable[str], error: type[ValueError] = ValueError) -> None:
    """Checks that names are not one string, which Python would read letter by letter.

    Args:
      key: what the names are given for, for the message.
      names: several names.
      error: the exception.

    Raises:
      ValueError: they are one string.
    """
    if isinstance(names, str):
        raise error(f"{key}: {names!r} is one string; give a list of names")


def search_working_directory(*names: str | None) -> None:
    """Lets Python import from the working directory if any of the names is `module:function`.

    The directory goes to the end of the search path, and only when a configuration asks for it: a
    file there can then add a module, but never replace one that is installed.
    """
    if any(":" in name for name in names if name is not None) and "" not in sys.path:
        sys.path.append("")
