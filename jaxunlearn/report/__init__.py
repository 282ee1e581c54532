"""What a run directory shows: figures and one self-contained page."""
