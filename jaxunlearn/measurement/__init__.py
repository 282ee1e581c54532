"""Measurements of a model at one theta: statistics, gradient effects, table rows."""
