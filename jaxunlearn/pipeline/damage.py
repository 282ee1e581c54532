"""Finds damage to the files of a run before they are used, and says what was left out."""

from collections.abc import Iterable

from rich.console import Console

from jaxunlearn.core import files, hosts
from jaxunlearn.core.progress import say
from jaxunlearn.record import manifest
from jaxunlearn.record.erase import has_results
from jaxunlearn.record.folder import RunFolder


def notes(folder: RunFolder) -> tuple[str, ...]:
    """Sentences on damage that does no harm by itself: a lost manifest, and lines cut short.

    Whoever opens the folder of a run writes the manifest anew, and takes away what is torn.
    """
    logs = (folder.metrics, folder.timings, folder.starts, folder.manifest)
    torn = [log for log in logs if files.is_torn(log)]
    cut = tuple(f"{log}: the last line was cut short and is left out" for log in torn)
    if not manifest.is_lost(folder) or not has_results(folder):
        return cut
    lost = (
        f"{folder.manifest}: is missing or empty, though the folder holds a run: its earlier files"
        " are taken as they are, damaged or not"
    )
    return (lost, *cut)


def check(folder: RunFolder, console: Console, *, without: Iterable[str] = ()) -> None:
    """Checks that the files of a run are whole, and removes what it can compute again.

    Args:
      folder: of the run, locked.
      console: gets a note of what is removed.
      without: stages that are about to be written again.

    Raises:
      ValueError: names the file that is damaged, and what to do.
    """
    manifest.check_together(folder, without=(*without, manifest.REFERENCES))

    def drop_references() -> None:
        try:
            manifest.check(folder, only=[manifest.REFERENCES])
        except ValueError as error:
            note = f"{error}: they are removed, and the next start computes what it needs of them"
            say(console, note)
            files.remove_folder(folder.references)

    hosts.first_does(drop_references, f"{folder.references}: the first process cannot remove them")
