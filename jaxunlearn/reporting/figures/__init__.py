"""The figures of a run: pure functions from its tables to matplotlib figures."""
