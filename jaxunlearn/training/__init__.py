"""Training: batches on a mesh, objectives on the model, the train step, checkpoints."""
