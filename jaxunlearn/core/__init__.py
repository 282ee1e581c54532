"""Foundations that everything else uses: parameter trees, files, processes, names, progress."""
