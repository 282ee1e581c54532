"""What a page is made of, with texts that would break one that does not escape them."""

from jaxunlearn.record.texts import SampleText
from jaxunlearn.reporting.page.source import Source
from jaxunlearn.reporting.terminal import TextTable
from tests.reporting.synthetic import make_tables, with_values

HOSTILE = '</script><script>document.title="owned"</script> "quoted" \u202eRTL \x1b[31mred <!-- '
ARABIC = "من هو الكاتب؟"


def page_tables(samples: int = 6) -> dict:
    """The synthetic tables, with changes, effects by layer and by token."""
    made = make_tables(("ga", "npo"), samples)
    made = with_values(made, "g_effect", "layer", lambda row: row["layer"])
    made["g_effect"]["interval_change"] = [
        None if p is None else 1.1 * p for p in made["g_effect"]["interval_predicted"]
    ]
    pg = made["pg_effect"]
    for layer in ("embed", "block_0"):
        for i in [i for i, name in enumerate(pg["layer"]) if name == "total"]:
            for key, column in pg.items():
                column.append(layer if key == "layer" else column[i])
    tokens = [
        (step, name, sample, place, risk, -0.1 * (place + 1), 0.5 + 0.1 * place)
        for step in (5, 15)
        for name in ("ga", "npo")
        for sample in range(samples)
        for place in range(3)
        for risk in ("unlearn", "retain")
    ]
    names = ("step", "objective", "sample", "position", "risk", "value", "weight")
    made["token_effect"] = dict(zip(names, map(list, zip(*tokens, strict=True)), strict=True))
    steps = list(range(4))
    made["relearn"] = {
        "model": ["ga"] * 4 + ["npo"] * 4,
        "attack": ["5"] * 8,
        "samples": [5] * 8,
        "step": steps * 2,
        "forget_es": [0.1, 0.3, 0.6, 0.8, 0.2, 0.2, 0.3, 0.3],
        "forget_nll": [3.0, 2.0, 1.0, 0.5] * 2,
        "unseen_es": [0.1] * 8,
        "effect": [1.0] * 8,
    }
    return made


def result(forget_es: float, retain_es: float, **more) -> dict:
    numbers = {"forget_nll": 1.0, "retain_nll": 0.1, "steps": 62, "of_steps": 62}
    return numbers | {"forget_es": forget_es, "retain_es": retain_es} | more


def attack(step: int | None, samples: int = 5) -> dict:
    status = "not recovered" if step is None else "recovered"
    return {"samples": samples, "whole": {"status": status, "step": step, "tried": 20}}


def attacks_of(steps: int = 20, **attacks: dict) -> dict:
    """The summary of attacks on the model ga."""
    return {"models": {"ga": {"attacks": attacks}}, "settings": {"steps": steps}}


def make_source(tables: dict | None = None, title: str = HOSTILE) -> Source:
    """A whole run's page; the first question and the title are hostile."""
    texts = [
        SampleText("forget", i, HOSTILE if i == 0 else ARABIC, f"answer {i}", ["a", " b", "</s>"])
        for i in range(6)
    ]
    return Source(
        title=title,
        tables=page_tables() if tables is None else tables,
        models={
            "base": result(1.0, 1.0),
            "retrained": result(0.2, 1.0),
            "ga": result(0.25, 0.5),
            "npo": result(0.9, 0.95),
        },
        attacks=attacks_of(**{"5": attack(2)}),
        text_tables=[("summary", TextTable(("model", "ES"), [(HOSTILE, "0.1")], (HOSTILE,)))],
        texts=texts,
        generated={
            "base": {HOSTILE: (HOSTILE, "truth")},
            "ga": {HOSTILE: ("", "truth")},
        },
        config=f"name: {HOSTILE}",
        timings=[("base", 12.0), ("ga", 3.4)],
        starts=[
            {
                "date": "2026-11-27T01:00:00+00:00", "python": "3.12", "versions": {"jax": "0.12"},
                "devices": 1, "device": "cpu", "processes": 1,
            }
        ],
        command="jaxunlearn run config.yaml",
    )  # fmt: skip
