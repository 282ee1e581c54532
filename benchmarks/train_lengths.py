"""The lengths of a benchmark's samples: real counts from a file, or a synthetic draw.

    python -m benchmarks.train_lengths TOFU TOKENIZER FILE

writes the token counts of TOFU's splits (a folder of its JSON lines) under a tokenizer, counts
alone: {"source": .., "splits": {split: {"tokens": [..], "labels": [..]}}}. Cost depends on nothing
else of the text, so benchmarks draw random tokens.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.data import encoding, sources

SPLITS = ("forget05", "retain_perturbed")
CONTEXT = 4096
FORM = '{"source": .., "splits": {split: {"tokens": [..], "labels": [..]}}}'


class Lengths(NamedTuple):
    """Token counts of every sample, by split.

    Attributes:
      source: of the counts, for the table.
      splits: {split: [(tokens, labels) of each sample]}.
    """

    source: str
    splits: dict[str, list[tuple[int, int]]]


def load(file: Path | None) -> Lengths:
    """The counts of a file, or the synthetic ones where there is none.

    Raises:
      ValueError: the file has another form.
    """
    if file is None:
        return synthetic()
    content = json.loads(file.read_text())
    try:
        splits = {
            name: list(zip(counts["tokens"], counts["labels"], strict=True))
            for name, counts in content["splits"].items()
        }
        return Lengths(content["source"], splits)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file}: expected counts of every sample, {FORM}, as `python -m"
            " benchmarks.train_lengths TOFU TOKENIZER FILE` writes them"
        ) from error


def synthetic(seed: int = 0) -> Lengths:
    """A lognormal draw with the means and 95th percentiles of TOFU under Llama-2's tokenizer."""
    draw = np.random.default_rng(seed)

    def split(samples: int) -> list[tuple[int, int]]:
        prompt = np.rint(draw.lognormal(np.log(27), 0.2, samples)).astype(int)
        labels = np.rint(draw.lognormal(np.log(41), 0.28, samples)).astype(int)
        return [(int(p + n), int(n)) for p, n in zip(prompt, labels, strict=True)]

    splits = {"forget05": split(200), "retain_perturbed": split(400)}
    return Lengths("synthetic (lognormal)", splits)


def measured(folder: Path, tokenizer: Path) -> Lengths:
    """Counts of the splits of TOFU under a tokenizer."""
    loaded = encoding.load_tokenizer(str(tokenizer))
    splits = {}
    for split in SPLITS:
        rows: Any = sources.load_split(str(folder), split)
        encoded = encoding.encode_rows(loaded, rows, context=CONTEXT, source=split)
        splits[split] = [(len(s.tokens), s.labels) for s in encoded.sequences]
    return Lengths(f"TOFU, {len(loaded)} tokens of vocabulary", splits)


def write(folder: Path, tokenizer: Path, file: Path) -> None:
    """Writes the counts of TOFU's splits under a tokenizer, and prints their means."""
    lengths = measured(folder, tokenizer)
    splits = {
        name: {"tokens": [t for t, _ in counts], "labels": [n for _, n in counts]}
        for name, counts in lengths.splits.items()
    }
    file.write_text(json.dumps({"source": lengths.source, "splits": splits}) + "\n")
    for name, counts in lengths.splits.items():
        print(f"{name}: {len(counts)} samples of {np.mean([t for t, _ in counts]):.1f} tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tofu", type=Path, help="folder of TOFU's JSON lines")
    parser.add_argument("tokenizer", type=Path, help="folder of a tokenizer")
    parser.add_argument("file", type=Path, help="where to write")
    options = parser.parse_args()
    write(options.tofu, options.tokenizer, options.file)


if __name__ == "__main__":
    main()
