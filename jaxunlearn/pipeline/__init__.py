"""The verbs of the product: run a configuration, evaluate, relearn and export what it made."""
