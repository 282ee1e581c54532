"""Loads a model folder in a process of its own and tells what it cost: run by test_hf_memory.py.

MALLOC_MMAP_THRESHOLD_ must be small: what is freed then goes back to the system at once, and memory
of the process is memory in use.

usage: python hf_memory.py FOLDER DATA FSDP TENSOR DTYPE
"""

import gc
import json
import math
import sys

import jax

from jaxunlearn.models import hf, sharding


def main(folder: str, *arguments: str) -> None:
    *sizes, dtype = arguments
    sizes = [int(size) for size in sizes]
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", math.prod(sizes))
    config = hf.load_config(folder)
    shardings = sharding.param_shardings(config, sharding.make_mesh(*sizes))
    load = lambda: jax.block_until_ready(
        hf.load_params(folder, config, shardings=shardings, dtype=dtype)
    )
    start = anonymous_bytes()
    load()  # for the compiler: its programs take the same few MB whatever the model's size
    jax.block_until_ready(jax.device_put(0.0))  # JAX lets go of host buffers when called again
    gc.collect()
    before = anonymous_bytes()
    print("loading", flush=True)
    params = load()
    shards = [shard.data for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards]
    output = {"start": start, "before": before, "after": anonymous_bytes()}
    print(json.dumps(output | {"device": sum(x.nbytes for x in shards)}))


def anonymous_bytes() -> int:
    """Memory of this process that is no mapped file: arrays on CPU devices and all host buffers."""
    with open("/proc/self/status") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("RssAnon:"))


if __name__ == "__main__":
    main(*sys.argv[1:])
