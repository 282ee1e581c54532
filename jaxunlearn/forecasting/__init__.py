"""Forecasts of a run: the memory and FLOPs of its programs, before it runs."""
