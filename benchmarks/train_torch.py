"""The same unlearning step in PyTorch with transformers' Llama, written as its users write it.

Batches are padded to their longest sample, attention is what transformers chooses, AdamW is the
fused one (transformers' own default), and the reference's log-probabilities are cached too.
"""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.train_ours import BETA, Job, Stepper, first_gradient
from jaxunlearn.models import hf
from jaxunlearn.training.batch import LabelCache

Tree = Any
IGNORED = -100  # cross entropy's label of tokens that do not count


def matmul_flops(size: int, half: bool, seconds: Callable[[Callable[[], Any]], float]) -> float:
    """FLOPs per second of the product of two square matrices."""
    import torch

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if half else torch.float32)

    def product() -> None:
        torch.matmul(a, a)
        if device == "cuda":
            torch.cuda.synchronize()

    return 2 * size**3 / seconds(product)


def peak_bytes(call: Callable[[], Any]) -> int | None:
    """Bytes of the device's memory that PyTorch holds at most during a call; None on a CPU."""
    import torch

    if jax.default_backend() != "gpu":
        call()
        return None
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def missing() -> str | None:
    """Why this framework cannot run here; None where it can."""
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        return f"{error.name} is not installed"
    if jax.default_backend() == "gpu" and not torch.cuda.is_available():
        return "torch finds no GPU"
    return None


def stepper(
    work: Job, params: Tree, reference: LabelCache, *, compiler: str | None = None
) -> Stepper:
    """The step of PyTorch and transformers.

    Args:
      work: what to do.
      params: the parameters to start from.
      reference: log p of every label under the reference.
      compiler: backend of `torch.compile` for the model; None runs it as it is.
    """
    import torch

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        model = _model(work, params, Path(folder) / "model").to(device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=work.lr,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=work.weight_decay,
        fused=True,
    )
    half = work.model.dtype == "bfloat16"
    forward = model if compiler is None else torch.compile(model, backend=compiler)

    def step(i: int) -> float:
        batch = {k: torch.from_numpy(v).to(device) for k, v in _batch(work, reference, i).items()}
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = _npo(forward, **batch)
        loss.backward()
        optimizer.step()
        return loss.item()

    def computed(i: int) -> int:
        return _batch(work, reference, i)["input_ids"].size

    def gradient() -> Tree:
        # In the place of the parameters, so that they are written and read as these are.
        holder = copy.deepcopy(model)
        pairs = zip(holder.parameters(), model.parameters(), strict=True)
        with torch.no_grad():
            for held, parameter in pairs:
                held.copy_(first_gradient(optimizer.state[parameter]["exp_avg"]))
        return _params(work, holder)

    return Stepper(step, computed, lambda: _params(work, model), gradient)


def _npo(model: Any, input_ids: Any, attention_mask: Any, labels: Any, ref_logp: Any) -> Any:
    """- (2 / beta) log sigmoid(- beta log (p(s) / q(s))), the mean over the samples."""
    from torch.nn import functional

    logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    nll = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        labels[:, 1:].flatten(),
        ignore_index=IGNORED,
        reduction="none",
    )
    log_ratio = -nll.view(len(labels), -1).sum(-1) - ref_logp
    return (-2 / BETA * functional.logsigmoid(-BETA * log_ratio)).mean()


def _batch(work: Job, reference: LabelCache, step: int) -> dict[str, np.ndarray]:
    """A step's samples, padded to the longest."""
    ids = work.steps[step]
    samples = [work.sequences[i] for i in ids]
    shape = len(samples), max(len(s.tokens) for s in samples)
    tokens, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    labels = np.full(shape, IGNORED, np.int64)
    for row, (text, first_label) in enumerate(samples):
        tokens[row, : len(text)], mask[row, : len(text)] = text, 1
        labels[row, first_label : len(text)] = text[first_label:]
    spans = [reference.values[reference.offsets[i] : reference.offsets[i + 1]] for i in ids]
    ref_logp = np.array([span.sum() for span in spans], np.float32)
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels, "ref_logp": ref_logp}


def _model(work: Job, params: Tree, folder: Path) -> Any:
    """transformers' model with these parameters, through its own files."""
    import torch
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    hf.save_params(folder, params, work.model)
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def _params(work: Job, model: Any) -> Tree:
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "model"
        model.save_pretrained(folder)
        return hf.load_params(folder, work.model)
