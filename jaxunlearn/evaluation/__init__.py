"""Suites of metrics and relearning attacks, applied to a model; they know no run folder."""
