"""The report of a run: figures and text tables, all recomputed from its record."""
