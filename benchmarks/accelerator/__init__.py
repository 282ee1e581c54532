"""Everything that is worth knowing of a card, in sections that end in minutes.

`python -m benchmarks.accelerator` is the command (`__main__`). It starts one process for each
section (`section`), whose rows are measured one after the other and written as they end
(`ledger`). `table` prints what all sections have, `pack` collects and finds what a machine without
a network must be given.
"""

SECTIONS = ("machine", "truth", "train", "effects", "peers", "job")
"""Each is a module with `rows(setting)` and `COLUMNS`, and a file of the same name."""
