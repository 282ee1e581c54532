"""The objectives and retain terms as text: a table of all, and everything about one."""

import dataclasses
from typing import Any

import yaml

from jaxunlearn import objectives
from jaxunlearn.config import DEMO, Guide, Objective, load
from jaxunlearn.core.names import nearest, search_working_directory
from jaxunlearn.objectives import Description, describe
from jaxunlearn.reporting.terminal import TextTable
from jaxunlearn.training.tasks import settings_of

NEEDS = {
    "ref": "reference",
    "logits": "logits",
    "hidden": "hidden states",
    "substitute": "substitutes",
    "guide": "PG-effects, retain rows",
}
"""What a need of `Objective.needs` is called."""

WORDS = (
    "reference: the model before unlearning, computed once; substitutes: other answers to the same"
    " question, such as refusals; p, q: probabilities under the model and the reference; s: an"
    " answer, i: its tokens; sg: taken as a constant"
)

_TEACH = ("epochs", "lr", "warmup_epochs", "target_nll")
_UNLEARN = ("epochs", "batch_size", "lr")
"""Keys of the demo that an example has too."""


def tables() -> list[tuple[str, TextTable]]:
    """A table of the objectives and one of the retain terms, with their titles."""
    unlearn = {name: objectives.get(name) for name in objectives.names()}
    retain = {name: objectives.get_retain(name) for name in objectives.retain_names()}
    return [
        ("objectives: L_u, minimised on the rows to forget", _table(unlearn)),
        ("retain terms: L_r, minimised on rows to retain", _table(retain)),
    ]


def text(name: str) -> str:
    """Everything about an objective or a retain term, with a configuration that runs.

    The text is that configuration: all else are its comments.

    Args:
      name: of the registry, or `my_package.my_module:NAME`.

    Raises:
      ValueError: an unknown name, with the nearest one; or a function of another form.
    """
    search_working_directory(name)
    known = (*objectives.names(), *objectives.retain_names())
    if ":" not in name and name not in known:
        raise ValueError(
            f"no objective or retain term {name!r}; there are: {', '.join(known)}"
            f"{nearest(name, known)}"
        )
    is_retain = name in objectives.retain_names()
    loss = objectives.get_retain(name) if is_retain else objectives.get(name)
    found, defaults = describe(loss), Objective()
    settings = {key: getattr(defaults, key) for key in settings_of(loss.arrays)}
    kind = "retain term" if is_retain else "objective"
    lines = [f"{name}: {kind}", "", found.title, ""]
    if ":" in name:
        # A function does not say what it is for: a retain term, minimised on the rows to forget,
        # would teach them.
        lines[0] = f"{name}: an objective here, minimised on the rows to forget"
        as_term = f"(as a retain term: `retain: {name}` beside another loss, and `retain_hyper`)"
        lines.insert(1, as_term)
    lines += [*(f"    {line}" for line in found.formula.split("\n")), ""] if found.formula else []
    lines += [
        f"paper: {found.paper or 'none named'}",
        f"arrays: {', '.join(found.arrays)}",
        f"needs: {_needs(loss)}",
        f"reduction: {_reductions(loss)}",
    ]
    hyper = "retain_hyper" if is_retain else "hyper"
    for one in found.hyper:
        meaning = f"  ({one.text.rstrip('.')})" if one.text else ""
        lines.append(f"{hyper}.{one.name}: {one.value}{meaning}")
    lines += [f"{key}: {_shown(value)}  (key of the objective)" for key, value in settings.items()]
    example = _example(name, found, settings, is_retain=is_retain)
    lines += ["", "A configuration that runs, on the embedded data:"]
    return "\n".join([*(f"# {line}".rstrip() for line in lines), example])


def _table(entries: dict[str, objectives.Objective]) -> TextTable:
    rows = []
    for name, objective in entries.items():
        found = describe(objective)
        formula = " ".join(found.formula.split())
        paper = (found.paper or "").removeprefix("arXiv ")
        hyper = ", ".join(f"{one.name} {one.value}" for one in found.hyper)
        rows.append((name, formula, hyper or "-", _needs(objective), paper or "-"))
    return TextTable(("name", "formula", "hyper-parameters", "needs", "arXiv"), rows)


def _needs(objective: objectives.Objective) -> str:
    return ", ".join(words for need, words in NEEDS.items() if need in objective.needs) or "-"


def _reductions(objective: objectives.Objective) -> str:
    """The values that the key `reduction` may have."""
    if objective.per_token:
        return "sequence_sum (default), sequence_mean or token_mean"
    return "sequence_sum, as it is one loss a sequence"


def _shown(value: Any) -> Any:
    return dataclasses.asdict(value) if isinstance(value, Guide) else value


def _example(name: str, found: Description, settings: dict[str, Any], *, is_retain: bool) -> str:
    """A configuration in YAML that fine-tunes a small model and unlearns with the objective."""
    demo = load(DEMO)
    entry_name = name.rpartition(":")[2]
    entry: dict[str, Any] = {} if entry_name == name else {"loss": name}
    hyper = {one.name: one.value for one in found.hyper}
    if is_retain:
        entry_name, entry = f"npo_{name}", {"loss": "npo", "retain": name}
    entry |= {"retain_hyper" if is_retain else "hyper": hyper} if hyper else {}
    entry |= {key: _shown(value) for key, value in settings.items() if value is not None}
    document = {
        "name": entry_name,
        "finetune": {key: getattr(demo.finetune, key) for key in _TEACH},
        "unlearn": {key: getattr(demo.unlearn, key) for key in _UNLEARN},
        "objectives": {entry_name: entry},
    }
    return yaml.safe_dump(document, sort_keys=False, default_flow_style=None).rstrip()
