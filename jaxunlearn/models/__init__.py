"""Models on JAX: one decoder, its mesh, its files, and adapters for models of others.

* `decoder`: one decoder-only transformer on packed rows. The few differences between model
  families (biases, the placement of norms and the form of their scales, sliding windows of all or
  some layers, rotary frequencies, caps, a tied head, the activation) are fields of
  `decoder.DecoderConfig`; `decoder.forward` is all that the rest of the package calls, and it knows
  no family.
* `families`: for each family a table that maps its files on Hugging Face to the decoder: keys of
  config.json to fields, names of tensors to parameters. The only place that knows families.
* `hf`: reads and writes model folders by those tables, and refuses settings that no table lists.
* `sharding`: the device mesh, and where each parameter lives on it.
* `sizes`: shapes of published models, for forecasts before anything is downloaded.
* `adapters`: Flax models of others as a function and a pytree.

To add a family whose differences the decoder has: write its table in `families/FAMILY.py` and list
it in `families.FAMILIES`; its tests are those of tests/models/test_families.py with one more entry.
For a difference that the decoder lacks, first add a field to `DecoderConfig`, its parameters to the
leaf table (with a sharding rule where a logical dimension is new), and its computation to
`decoder/modules.py`, read through `_read` so that probes reach it. Blocks are scanned: what differs
from one to the next is data of the scan, chosen by `modules.by_kind`, and no branch in Python.
"""
