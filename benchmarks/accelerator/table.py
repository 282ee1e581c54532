"""The sections' files as Markdown, and the expectations that they confirm or refute."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxunlearn.core import files

Values = dict[str, Any]
Records = Mapping[str, Values]
"""{section: the content of its file}"""

FORMATS: dict[str, Callable[[Any], str]] = {
    "text": str,
    "count": lambda x: f"{x:.0f}",
    "ratio": lambda x: f"{x:.2f}",
    "percent": lambda x: f"{x:.1%}",
    "seconds": lambda x: f"{x:.3g}",
    "small": lambda x: f"{x:.0e}",
    "giga": lambda x: f"{x / 1e9:.3g}",
    "tera": lambda x: f"{x / 1e12:.3g}",
    "stages": lambda x: "; ".join(f"{name} {seconds:.1f}" for name, seconds in x.items()),
}
HELD_LAST = ("does not fit", "not here", "no material", "failed", "cut short", "running")


class Expectation(NamedTuple):
    """A claim about the results.

    Attributes:
      text: the claim.
      section: whose rows decide.
      value: the number that decides, of the rows by name that are done; None: not measured.
      holds: of that number.
    """

    text: str
    section: str
    value: Callable[[Records], float | None]
    holds: Callable[[float], bool]


def read(out: Path, sections: Iterable[str]) -> Records:
    """The files of the sections that have one."""
    paths = {section: out / f"{section}.json" for section in sections}
    return {name: files.read_json(path) for name, path in paths.items() if path.is_file()}


def markdown(records: Records, notes: Mapping[str, str]) -> str:
    """One table for each section, with what was not measured and why, and the expectations.

    Args:
      records: from `read`.
      notes: {section: what the command saw of its process}.
    """
    parts = []
    if any(record["rehearsal"] for record in records.values()):
        parts.append("A rehearsal in tiny sizes: no number below means anything.")
    for name, record in records.items():
        parts += [f"## {name}", _circumstances(record), _section(record)]
        parts += [note for note in (_open(record), notes.get(name)) if note]
    lost = [f"{name}: {note}" for name, note in notes.items() if name not in records]
    return "\n\n".join([*parts, *lost, "## expectations", expectations(records)]) + "\n"


def expectations(records: Records) -> str:
    """A line for each expectation: the number, and whether it holds."""
    lines = ["| expectation | measured | |", "|---|---|---|"]
    for claim in EXPECTATIONS:
        value = claim.value(_done(records, claim.section))
        if value is None:
            lines.append(f"| {claim.text} | - | not measured |")
        elif records[claim.section]["rehearsal"]:
            lines.append(f"| {claim.text} | {value:.3g} | a rehearsal decides nothing |")
        else:
            verdict = "holds" if claim.holds(value) else "does not hold"
            lines.append(f"| {claim.text} | {value:.3g} | {verdict} |")
    return "\n".join(lines)


def _circumstances(record: Values) -> str:
    last = record["processes"][-1]
    versions = ", ".join(f"{k} {v}" for k, v in last["versions"].items() if v)
    return f"{record['device']}, {last['date']}; {versions}"


def _section(record: Values) -> str:
    """The rows that are done, with the columns that any of them has."""
    done = {name: row for name, row in record["rows"].items() if row["state"] == "done"}
    if not done:
        return "No row is done."
    columns = {
        key: column
        for key, column in record["columns"].items()
        if any(row.get(key) is not None for row in done.values())
    }
    titles = ["row", *(title for title, _ in columns.values())]
    lines = [titles, ["---"] * len(titles)]
    for name in [*record["planned"], *(n for n in done if n not in record["planned"])]:
        if name in done:
            cells = [_cell(done[name].get(key), form) for key, (_, form) in columns.items()]
            lines.append([name, *cells])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _cell(value: Any, form: str) -> str:
    return "-" if value is None else FORMATS[form](value).replace("|", "/")


def _open(record: Values) -> str:
    """The rows without numbers, by reason, and the exception of a section."""
    lines = []
    for state in HELD_LAST:
        rows = {n: row for n, row in record["rows"].items() if row["state"] == state}
        lines += [
            f"- {name}: {state}. {row.get('reason', '')}".rstrip() for name, row in rows.items()
        ]
    untried = [name for name in record["left"] if name not in record["rows"]]
    if untried:
        lines.append(f"- no time for: {'; '.join(untried)}")
    if record["traceback"]:
        lines.append(f"- the section failed: {record['traceback'].strip().splitlines()[-1]}")
    return "\n".join(lines)


def _done(records: Records, section: str) -> Records:
    rows = records.get(section, {}).get("rows", {})
    return {name: row for name, row in rows.items() if row["state"] == "done"}


def _value(prefix: str, key: str, choose: Callable = max) -> Callable[[Records], float | None]:
    """The chosen one of a key's values, of the rows whose names begin so; None without any."""

    def value(rows: Records) -> float | None:
        found = [
            row[key]
            for name, row in rows.items()
            if name.startswith(prefix) and row.get(key) is not None
        ]
        return choose(found) if found else None

    return value


def _farthest_from_one(values: Iterable[float]) -> float:
    return max(values, key=lambda value: abs(value - 1))


def _fastest_peer(rows: Records) -> float | None:
    """The time of PyTorch's fastest way to all of the same numbers, over ours."""
    ratios = [
        row["ratio"]
        for name, row in rows.items()
        if name.startswith("PG-effects, 1b, K=2, bfloat16") and not row["linear_only"]
    ]
    return min(ratios, default=None)


EXPECTATIONS = (
    Expectation(
        "7B train step at 64k tokens: MFU >= 0.5",
        "train",
        _value("7b, 64k tokens, ", "mfu"),
        lambda x: x >= 0.5,
    ),
    Expectation(
        "the same with 8 of the 32 blocks: MFU >= 0.5",
        "train",
        _value("7b, 8 of 32 blocks, 64k tokens, ", "mfu"),
        lambda x: x >= 0.5,
    ),
    *(
        Expectation(
            f"PG-effects K = 2 at {model}, the faster of jvp and gates: <= 1.4 gradients",
            "effects",
            lambda rows, model=model: min(
                (
                    row["over_gradient"]
                    for way in ("jvp", "gates")
                    for name, row in rows.items()
                    if name == f"{model}, {way}, K=2, 16k tokens, xla"
                ),
                default=None,
            ),
            lambda x: x <= 1.4,
        )
        for model in ("7b", "1b")
    ),
    Expectation(
        "PyTorch's fastest way to the same PG-effects at 1B: >= 2 of our time",
        "peers",
        _fastest_peer,
        lambda x: x >= 2,
    ),
    Expectation(
        "peak memory of a train step over its forecast, the farthest from 1: within 0.1",
        "train",
        _value("", "peak_over_forecast", _farthest_from_one),
        lambda x: abs(x - 1) <= 0.1,
    ),
    Expectation(
        "a 7B measurement of 200 + 400 samples, with PG-effects: <= 15 s",
        "job",
        _value("llama-2-7b, ", "longest_measurement_seconds"),
        lambda x: x <= 15,
    ),
)
