"""Collects what a machine with a card and without a network must be given.

    python -m benchmarks.accelerator pack DIR --model FOLDER [--tofu FOLDER] [--stories FOLDER]

Files over 55 MB are split in parts. What can travel together in one call of 60 MB and 8 paths is
listed at the end: a later call finds the parts that earlier ones left in the folder.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import train_lengths
from benchmarks.accelerator.material import MANIFEST, MODEL, PARTS
from jaxunlearn.core.files import sha256

PART_BYTES = 55_000_000
CALL_BYTES, CALL_PATHS = 60_000_000, 8
WHEELS = ("kronfluence", "einconv", "rouge-score", "nltk")
SPLITS = (
    "forget05",
    "forget05_perturbed",
    "retain95",
    "retain_perturbed",
    "real_authors",
    "real_authors_perturbed",
    "world_facts",
    "world_facts_perturbed",
    "idontknow",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Fills the folder, and prints what it holds and how it travels."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accelerator pack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="to fill; a pack that is there is replaced")
    add("--model", type=Path, help="folder of a model in Hugging Face's format (SmolLM2-135M)")
    add("--tofu", type=Path, help="folder of TOFU's JSON lines")
    add("--tokenizer", type=Path, help="of TOFU's token counts; default: the model's folder")
    add("--stories", type=Path, help="folder of stories260k with its golden.json")
    add("--wheels", nargs="*", default=WHEELS, help="packages that the machine lacks")
    options = parser.parse_args(arguments)
    for name in ("model", "tofu", "tokenizer", "stories"):
        folder = getattr(options, name)
        if folder is not None and not folder.is_dir():
            parser.error(f"--{name} {folder}: no such folder")
    pack, tokenizer = options.folder, options.tokenizer or options.model
    _empty(parser, pack)
    # --- copy, split, count and download ----------------------------------------------------------
    joined = {}
    if options.model:
        joined = _add_model(options.model, pack)
    if options.tofu:
        wanted = [options.tofu / f"{split}.jsonl" for split in SPLITS]
        _copy((file for file in wanted if file.is_file()), pack / "tofu")
        if tokenizer is None:
            print("no token counts: they need --model or --tokenizer")
        else:
            train_lengths.write(options.tofu, tokenizer, pack / "lengths.json")
    if options.stories:
        _copy((file for file in sorted(options.stories.iterdir())), pack / "stories260k")
    for package in options.wheels:
        _download(package, pack / "wheels")
    # --- the manifest, and the calls --------------------------------------------------------------
    names = sorted(str(f.relative_to(pack)) for f in pack.rglob("*") if f.is_file())
    digests = {name: sha256(pack / name) for name in names}
    content = {"files": digests, "joined": joined}
    (pack / MANIFEST).write_text(json.dumps(content, indent=1) + "\n")
    total = sum((pack / name).stat().st_size for name in names)
    print(f"{pack}: {len(names)} files, {total / 1e6:.1f} MB")
    for number, (paths, size) in enumerate(calls(pack), 1):
        print(f"call {number}, {size / 1e6:.1f} MB: {' '.join(str(path) for path in paths)}")


def split(file: Path, folder: Path, part_bytes: int) -> list[Path]:
    """Writes a file as parts NAME.00, NAME.01, ..; returns them in order."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    with file.open("rb") as source:
        while content := source.read(part_bytes):
            parts.append(folder / f"{file.name}.{len(parts):02d}")
            parts[-1].write_bytes(content)
    return parts


def calls(pack: Path) -> list[tuple[list[Path], int]]:
    """The paths of the pack that travel together, with their bytes: parts, then whole folders.

    The manifest goes with every call.
    """
    manifest, parts = pack / MANIFEST, pack / PARTS
    others = [path for path in sorted(pack.iterdir()) if path not in (manifest, parts)]
    travelling = [*(sorted(parts.iterdir()) if parts.is_dir() else []), *others]
    groups: list[tuple[list[Path], int]] = []
    base = manifest.stat().st_size
    for path in travelling:
        size = _bytes(path)
        room = [
            i
            for i, (paths, used) in enumerate(groups)
            if used + size <= CALL_BYTES and len(paths) < CALL_PATHS
        ]
        if not room:
            groups.append(([manifest], base))
            room = [len(groups) - 1]
        paths, used = groups[room[0]]
        groups[room[0]] = ([*paths, path], used + size)
    return groups


def _add_model(folder: Path, pack: Path) -> dict[str, dict]:
    """Copies a model's folder; returns the files that were split, as in the manifest."""
    joined = {}
    for file in sorted(f for f in folder.iterdir() if f.is_file()):
        if file.stat().st_size <= PART_BYTES:
            _copy([file], pack / MODEL)
            continue
        parts = split(file, pack / PARTS, PART_BYTES)
        names = [str(part.relative_to(pack)) for part in parts]
        joined[f"{MODEL}/{file.name}"] = {"sha256": sha256(file), "parts": names}
    return joined


def _copy(sources: Iterable[Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in sources:
        shutil.copyfile(file, folder / file.name)


def _download(package: str, folder: Path) -> None:
    """Gets the wheel of a package without what it depends on; says so where that fails."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder)]
    process = subprocess.run([*command, package], capture_output=True, text=True)
    if process.returncode:
        print(f"no wheel of {package}: {process.stderr.strip().splitlines()[-1:]}")


def _empty(parser: argparse.ArgumentParser, pack: Path) -> None:
    """Removes an earlier pack; refuses a folder that is none."""
    if pack.is_dir() and any(pack.iterdir()):
        if not (pack / MANIFEST).is_file():
            parser.error(f"{pack}: not empty, and no pack (it has no {MANIFEST})")
        shutil.rmtree(pack)
    pack.mkdir(parents=True, exist_ok=True)


def _bytes(path: Path) -> int:
    found = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    return sum(file.stat().st_size for file in found)
