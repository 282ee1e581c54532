"""Writes the tables and figures of docs/fidelity.md, between markers; the prose stays."""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.study import beyond, estimates, figures, units
from benchmarks.study.claims import CLAIMS, Claim
from benchmarks.study.facts import Facts, Studies, load, methods
from benchmarks.study.rules import UNKNOWN, VERDICTS
from benchmarks.study.texts import spread, table
from jaxunlearn.core import files

PAGE = Path("docs/fidelity.md")
FIGURES = Path("docs/fidelity")


def write(results: Path) -> None:
    """Writes the page's generated parts from the results that are there.

    Raises:
      ValueError: a part has no markers in the page.
    """
    contents = [files.read_json(file) for file in sorted(results.glob("*.json"))]
    studies = load([c for c in contents if "objectives" in c])
    compared = [c for c in contents if "states" in c]
    parts: dict[str, Callable[[], str]] = {
        "runs": lambda: runs(studies),
        "glance": lambda: glance(studies),
        "headline": lambda: headline(studies),
        "paper": lambda: verdicts(studies, "paper"),
        "summary": lambda: verdicts(studies, "summary"),
        "units": lambda: units.tables(studies),
        "estimators": lambda: estimates.table(compared),
        "beyond": lambda: beyond.tables(studies),
    }
    text = PAGE.read_text(encoding="utf-8")
    for name, make in parts.items():
        text = replaced(text, name, make())
    files.write_text(PAGE, text)
    figures.draw(studies, compared, FIGURES)


def replaced(text: str, name: str, content: str) -> str:
    """The text with what stands between a part's markers replaced.

    Raises:
      ValueError: the text lacks the markers.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if begin not in text or end not in text:
        raise ValueError(f"{PAGE}: lacks {begin} or {end}")
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    return re.sub(pattern, lambda _: f"{begin}\n\n{content}\n\n{end}", text, flags=re.DOTALL)


# --------------------------------------------------------------------------- parts


def runs(studies: Studies) -> str:
    """Where, when and how long each run was, and its model before unlearning."""
    rows = []
    for run in itertools.chain(*studies.values()):
        base = "base"
        sizes = run.content["samples"]
        rows.append(
            [
                f"`{run.content['study']}`",
                str(run.content["seed"]),
                str(len(run.content["objectives"])),
                f"{sizes['forget']} + {sizes['retain']}",
                str(run.steps),
                f"{run.result(base, 'forget_es'):.2f}, {run.result(base, 'retain_es'):.2f}",
                f"{run.content['minutes']:.0f}",
                _where(run.content),
            ]
        )
    titles = ["study", "seed", "objectives", "samples", "steps", "ES before", "minutes", "where"]
    return table(titles, rows)


def _where(content: Mapping[str, Any]) -> str:
    """The date, the machine and the version of JAX of a run."""
    about = content["about"]
    start = content.get("where", about)  # earlier results were collected where they were run
    machine = start["device"]
    if machine == "cpu":
        machine = f"{about['cores']} cores of {about['processor']}"
    return f"{start['date'][:10]}, {machine}, jax {start['versions']['jax']}"


def headline(studies: Studies) -> str:
    """The six methods: peaks of their effects and what became of both sets, over the seeds."""
    return "\n\n".join(
        f"`{study}`, seeds {', '.join(str(r.content['seed']) for r in runs)}:\n\n"
        + table(
            ["method", "seeds", "peak e_u", "at step", "peak e_r", "at step", "at rest from",
             "forget NLL up by", "retain NLL up by", "forget ES", "retain ES"],
            [[label, *_headline(names)] for label, names in methods(runs).items()],
        )
        for study, runs in studies.items()
    )  # fmt: skip


def _headline(names: Sequence[tuple[Facts, str]]) -> list[str]:
    """What is said of one method, by the runs that have it."""
    peaks = {risk: [run.peak(n, risk) for run, n in names] for risk in ("unlearn", "retain")}
    rests = [run.settled(n) for run, n in names]
    return [
        str(len(names)),
        spread([p for p, _ in peaks["unlearn"]], "{:.2g}"),
        spread([s for _, s in peaks["unlearn"]], "{:.0f}"),
        spread([p for p, _ in peaks["retain"]], "{:.2g}"),
        spread([s for _, s in peaks["retain"]], "{:.0f}"),
        ", ".join("-" if rest is None else str(rest) for rest in rests),
        *(spread([run.rise(n, s) for run, n in names], "{:.2g}") for s in ("forget", "retain")),
        *(spread([run.result(n, k) for run, n in names], "{:.2f}")
          for k in ("forget_es", "retain_es")),
    ]  # fmt: skip


def glance(studies: Studies) -> str:
    """Which claims hold, and which do not, with every seed that can be judged."""
    kinds = (*VERDICTS, "seeds differ", UNKNOWN)
    rows = []
    for study, runs in studies.items():
        keys: dict[str, list[str]] = {kind: [] for kind in kinds}
        for claim in CLAIMS:
            known = {claim.verdict(run)[0] for run in runs} - {UNKNOWN}
            kind = "seeds differ" if len(known) > 1 else next(iter(known), UNKNOWN)
            keys[kind].append(claim.key)
        cells = (f"{len(keys[kind])}: {', '.join(keys[kind])}".removesuffix(": ") for kind in kinds)
        rows.append([f"`{study}`, {len(runs)} seeds", *cells])
    return table(["", *kinds], rows)


def verdicts(studies: Studies, source: str) -> str:
    """Every claim of a source with its rule, and what each study says of it."""
    claims = [claim for claim in CLAIMS if claim.source == source]
    rows = [
        [claim.key, f"{claim.text} *{claim.rule}*", *(_verdict(claim, r) for r in studies.values())]
        for claim in claims
    ]
    return table(["", "claim, and *rule*", *(f"`{name}`" for name in studies)], rows)


def _verdict(claim: Claim, runs: Sequence[Facts]) -> str:
    """The verdicts of a study's seeds, with the number of the first that could be judged."""
    judged = [claim.verdict(run) for run in runs]
    # A seed that ran the six methods alone says nothing of the others.
    known = [v for v in judged if v[0] != UNKNOWN]
    if not known:
        verdict, reason = judged[0]
        return f"**{verdict}**: {reason}"
    counts = {verdict: sum(v == verdict for v, _ in known) for verdict, _ in known}
    words = ", ".join(
        f"**{verdict}**" + (f" ({n} of {len(runs)})" if len(runs) > 1 else "")
        for verdict, n in counts.items()
    )
    others = len(runs) - len(known)
    rest = f", {others} cannot be judged" if others else ""
    return f"{words}{rest}: {known[0][1]}"
