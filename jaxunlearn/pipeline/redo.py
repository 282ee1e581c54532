"""What was measured of an objective whose folder was removed, so that it is computed again.

Suites and attacks are used again where their settings are equal, which say nothing of the model:
those of the removed one would stand beside the new one's effects.
"""

from rich.console import Console

from jaxunlearn.config import load
from jaxunlearn.core import files, hosts
from jaxunlearn.core.progress import say
from jaxunlearn.metrics.relearning import Settings, is_attack
from jaxunlearn.record import attack_results, manifest, shapes
from jaxunlearn.record.folder import RunFolder


def remove_measurements(folder: RunFolder, name: str, console: Console) -> None:
    """Removes the evaluation and the attacks of an objective from a run, and says so.

    Args:
      folder: of the run.
      name: the objective, whose own folder is gone.
      console: where that is said, if there was something.
    """

    def remove() -> None:
        found = (_remove_evaluation(folder, name), _remove_attacks(folder, name))
        if any(found):
            say(console, f"{name} was removed; its evaluation and attacks are removed, too")

    hosts.first_does(remove, f"{folder.path}: the first process cannot remove them; it says why")


def _remove_evaluation(folder: RunFolder, name: str) -> bool:
    """Whether there was one."""
    if not folder.evaluation.is_file():
        return False
    record = files.read_json(folder.evaluation, shapes.Evaluations)
    if record["models"].pop(name, None) is None:
        return False
    record.get("steps", {}).pop(name, None)
    manifest.open_stage(folder, manifest.EVALUATION)
    folder.tofu_log(name).unlink(missing_ok=True)
    files.write_json(folder.evaluation, record)
    written = [folder.evaluation, *map(folder.tofu_log, record["models"])]
    manifest.seal(folder, manifest.EVALUATION, written, redo=folder.evaluation)
    return True


def _remove_attacks(folder: RunFolder, name: str) -> bool:
    """Whether there were any."""
    attacks = [
        attack
        for file in sorted(folder.attacks.glob("*.json"))
        if (attack := file.stem.removeprefix(f"{name}-")) != file.stem and is_attack(attack)
    ]
    for attack in attacks:
        manifest.open_stage(folder, manifest.attack_on(name, attack))
        folder.attack(name, attack).unlink()
    if attacks and (merged := attack_results.read(folder.path)) is not None:
        attack_results.write_tables(folder, load(folder.config), Settings(**merged["settings"]))
    return bool(attacks)
