"""Llama on JAX: `llama` the model, `sharding` its mesh, `hf` its files, `adapters` for others."""
