"""Corpora as WMDP has them: papers with titles to forget, lines of an encyclopedia to retain."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxunlearn.config import Objective
from jaxunlearn.core import files
from jaxunlearn.data import fictional
from jaxunlearn.data.packing import real_token_share
from jaxunlearn.measurement import statistics
from jaxunlearn.pipeline import recipe
from jaxunlearn.pipeline.prepare import prepare
from jaxunlearn.record import texts
from jaxunlearn.record.folder import RunFolder
from tests.pipeline.tiny import replace, run

ONE = jax.devices()[:1]
CHUNK = 32
# Lengths of documents in sentences: shorter than a chunk, and many chunks.
PAPERS, LINES = (1, 9, 2, 14), (1, 2, 1, 3, 1, 1, 2, 1)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """A folder with the columns of cais/wmdp-corpora, and lines with the headings of wikitext."""
    folder = tmp_path_factory.mktemp("wmdp")
    rows = fictional.generate(0, authors=8, questions=6)["full"]
    sentences = iter([row["answer"] for row in rows])
    text = lambda count, mark: mark.join(next(sentences) for _ in range(count))
    papers = [
        {
            "title": f"On {i}: a “study” of µ",
            "abstract": "Nothing is read of this.",
            "text": text(count, "\n\n"),
            "doi": f"10.1000/{i}",
        }
        for i, count in enumerate(PAPERS)
    ]
    lines = [{"text": f" = Heading {i} = \n {text(n, ' @-@ ')}"} for i, n in enumerate(LINES)]
    halves = {"wikitext": lines[::2], "wikitext-measured": lines[1::2]}
    for name, corpus in {"bio-forget-corpus": papers, **halves}.items():
        content = "".join(files.to_json(row) + "\n" for row in corpus)
        (folder / f"{name}.jsonl").write_text(content, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def config(corpora):
    """RMU with its own retain term, as in WMDP, on a new small model that learns the corpora."""
    return replace(
        data={
            "source": str(corpora),
            "forget": "bio-forget-corpus",
            "retain": "wikitext",
            "measured_retain": "wikitext-measured",
            "text_key": "text",
            "chunk_tokens": CHUNK,
        },
        objectives={"rmu": Objective(retain="rr"), "npo": Objective(retain="gd")},
        finetune={"epochs": 1, "splits": ("bio-forget-corpus", "wikitext")},
        unlearn={"epochs": 1, "warmup_epochs": 0, "batch_size": 4},
        measure={"every": 0, "pg_steps": (), "token_steps": ()},
        evaluate={"suites": ("memorization",)},
    )


def test_every_token_of_a_document_is_in_one_chunk(config):
    prepared = prepare(config, ONE)
    samples, rows = prepared.sets.forget, prepared.forget_rows
    assert len(samples) == len(rows) > len(PAPERS)
    documents = open_documents(prepared)
    for i, document in enumerate(documents):
        chunks = [s for s, row in zip(samples, rows, strict=True) if row["document"] == i]
        labels = np.concatenate([chunk.tokens[chunk.first_label :] for chunk in chunks])
        assert prepared.tokenizer.decode(labels[:-1]) == document["text"]
        assert labels[-1] == prepared.tokenizer.eos_token_id
        assert all(len(chunk.tokens) == CHUNK for chunk in chunks[:-1])


def open_documents(prepared):
    """The papers, of whose columns the text alone is read."""
    rows = prepared.sources.require("bio-forget-corpus", "data.forget")
    assert {key for row in rows for key in row} == {"text", "document"}
    return list(rows)


def test_chunks_are_packed_and_no_value_depends_on_it(config):
    prepared = prepare(config, ONE)
    samples = prepared.sets.forget
    with jax.set_mesh(prepared.mesh):
        params = prepared.initial()
        narrow = dataclasses.replace(prepared.layout, batch_tokens=1)
        splits = [layout.split(samples) for layout in (prepared.layout, narrow)]
        packed, single = (statistics.statistics(params, x, prepared.model) for x in splits)
    assert len(splits[0].packed) < len(splits[1].packed)
    assert real_token_share(splits[0].packed) > 0.9
    np.testing.assert_allclose(packed.nll, single.nll, rtol=1e-5)


@pytest.mark.slow
def test_a_run_forgets_papers_and_keeps_lines(config, tmp_path):
    run(config, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    models = files.read_json(folder.results)["models"]
    for model in ("base", "rmu", "npo"):
        assert np.isfinite([models[model]["forget_nll"], models[model]["retain_nll"]]).all()
    assert models["npo"]["forget_nll"] > models["base"]["forget_nll"]
    evaluated = files.read_json(folder.evaluation)["models"]["rmu"]["memorization"]["results"]
    assert any(row["value"] is not None for row in evaluated)
    written = [text for text in texts.read(folder.path) if text.split == "forget"]
    assert {text.question for text in written} == {f"document {i}" for i in range(len(PAPERS))}


def test_a_blank_line_is_named(config, corpora, tmp_path):
    """Wikitext has them between articles; a document without a token is nothing to retain."""
    for file in corpora.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    file = tmp_path / "wikitext.jsonl"
    file.write_text(file.read_text("utf-8") + '{"text": ""}\n', encoding="utf-8")
    changed = replace(config, data={"source": str(tmp_path)})
    line = len(LINES[::2]) + 1
    with pytest.raises(ValueError, match=rf"wikitext\.jsonl:{line}: expected a non-empty 'text'"):
        recipe.begin(changed, tmp_path / "run", ONE)
