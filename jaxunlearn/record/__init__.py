"""The folder of a run: the names of its files, its tables, logs and stored results."""
