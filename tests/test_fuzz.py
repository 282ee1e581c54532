"""What strangers hand in, mutated at random: every reader succeeds or gives one clear error."""

import copy
import json
import re
import shutil
import tracemalloc

import datasets
import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from jaxunlearn.config import Objective, dump, load
from jaxunlearn.config.validate import validate
from jaxunlearn.core import files
from jaxunlearn.data import Columns, Encoder, fictional, load_split, load_tokenizer
from jaxunlearn.metrics import tofu_log
from jaxunlearn.metrics.relearning import Settings
from jaxunlearn.models import decoder, hf
from jaxunlearn.pipeline import resume, stored
from jaxunlearn.record import attack_results, manifest, starts, tables
from jaxunlearn.record.folder import BASE, RunFolder
from jaxunlearn.reporting import evaluation_table, relearn_table, summary
from jaxunlearn.reporting.page.verdicts import verdict
from tests.pipeline.tiny import TINY, replace

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ODD = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**200, -0.5, 1e308, float("inf"), float("nan"),
    "", "a", "\x00", "é\ud7ff", "../../x", "/etc/passwd", "1", "null", [], [1], [[]], {}, {"a": 1},
    "x" * 10_000, [None] * 100, {"": {"": {}}},
)  # fmt: skip
"""Values in the place of others."""

BYTES = (
    b"\x00",
    b"\xff\xfe",
    b"{",
    b"}",
    b"[" * 2000,
    b'"',
    b"\n",
    b"&a *a",
    b"!!python/object",
    b"-",
)


def mutated_bytes(content, draw):
    """Bytes changed, removed, doubled or put in at a random place."""
    content = bytearray(content)
    for _ in range(draw.integers(1, 4)):
        at = int(draw.integers(len(content) + 1))
        length = int(draw.integers(1, 40))
        how = draw.integers(5)
        if how == 0 and at < len(content):
            content[at] ^= 1 << int(draw.integers(8))
        elif how == 1:
            del content[at : at + length]
        elif how == 2:
            content[at:at] = content[at : at + length]
        elif how == 3:
            content[at:at] = BYTES[draw.integers(len(BYTES))]
        else:
            del content[at:]
    return bytes(content)


def mutated_value(value, draw):
    """A nested value with one of its parts replaced, removed, renamed or doubled."""
    value = copy.deepcopy(value)
    place, key, parent = value, None, None
    while isinstance(place, dict | list) and place and (parent is None or draw.random() < 0.8):
        keys = list(place) if isinstance(place, dict) else range(len(place))
        parent, key = place, keys[draw.integers(len(keys))]
        place = parent[key]
    odd = copy.deepcopy(ODD[draw.integers(len(ODD))])
    if parent is None:
        return odd
    how = draw.integers(4)
    if how == 0:
        del parent[key]
    elif how == 1 and isinstance(parent, dict):
        parent[str(key) + "_"] = parent.pop(key)
    elif how == 2 and isinstance(parent, list):
        parent.insert(int(key), parent[key])
    else:
        parent[key] = odd
    return value


def mutants(content, parse, dump_, draw):
    """Endless mutants of a file: half of them of its bytes, half of its values."""
    value = parse(content)
    while True:
        if draw.random() < 0.5:
            yield mutated_bytes(content, draw)
            continue
        try:
            yield dump_(mutated_value(value, draw))
        except (TypeError, ValueError, OverflowError, yaml.YAMLError, UnicodeError):
            continue  # no such file can be written


def as_json(value):
    return json.dumps(value).encode()


def as_lines(rows):
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def as_yaml(value):
    return yaml.safe_dump(value).encode("utf-8", "surrogatepass")


ROLES = (("user", "question"), ("assistant", "answer"))


def lines(content):
    return [json.loads(line) for line in content.splitlines()]


class Reader:
    """A file to mutate, and what reads it."""

    def __init__(self, name, content, read, parse=None, dump_=None, *, said=None):
        self.name, self.content, self.read = name, content, read
        self.parse, self.dump = parse, dump_
        self.said = said or name  # what an error must name

    def mutants(self, draw):
        if self.parse is not None:
            return mutants(self.content, self.parse, self.dump, draw)
        return (mutated_bytes(self.content, draw) for _ in iter(int, 1))


def configuration(folder):
    def read(file):
        validate(load(file))

    # Of a value that is out of range, the key says where it is; an objective may have any name.
    said, content = r"config\.yaml|^[\w.]+: |^objectives\.[\s\S]+: ", dump(TINY).encode()
    return Reader("config.yaml", content, read, yaml.safe_load, as_yaml, said=said)


def rows(folder):
    data, tokenizer = authors()

    read = encode_found(tokenizer, Columns())
    return Reader("rows.jsonl", as_lines(data), read, lines, as_lines, said="rows")


def authors():
    """Rows about two authors, and a tokenizer for them."""
    data = fictional.generate(0, authors=2, questions=2)["full"]
    return data, fictional.train_tokenizer(data, vocab_size=300)


def encode_found(tokenizer, columns):
    def read(file):
        found = load_split(file, columns=columns)
        Encoder(tokenizer, context=96, too_long="drop").encode(found, "rows")

    return read


def json_rows(folder):
    data, tokenizer = authors()
    read = encode_found(tokenizer, Columns())
    return Reader("rows.json", as_json(data), read, json.loads, as_json, said="rows")


def conversations(folder):
    data, tokenizer = authors()
    turns = [
        {"messages": [{"role": role, "content": row[key]} for role, key in ROLES]} for row in data
    ]
    read = encode_found(tokenizer, Columns())
    return Reader("rows.jsonl", as_lines(turns), read, lines, as_lines, said="rows")


def documents(folder):
    data, tokenizer = authors()
    content = as_lines([{"text": row["answer"] * 9} for row in data])
    read = encode_found(tokenizer, Columns(text="text"))
    return Reader("rows.jsonl", content, read, lines, as_lines, said="rows")


def csv_rows(folder):
    data, tokenizer = authors()
    quoted = [f'"{row["question"]}","{row["answer"]}"\n' for row in data]
    content = "".join(["question,answer\n", *quoted]).encode()
    return Reader("rows.csv", content, encode_found(tokenizer, Columns()), said="rows")


def parquet_rows(folder):
    data, tokenizer = authors()
    pq.write_table(pa.Table.from_pylist(data), folder / "rows.parquet")
    content = (folder / "rows.parquet").read_bytes()
    return Reader("rows.parquet", content, encode_found(tokenizer, Columns()), said="rows")


def saved_dataset(folder):
    """The folder that `datasets` writes: its state is mutated, which names the file of the rows."""
    data, tokenizer = authors()
    datasets.Dataset.from_list(data).save_to_disk(folder / "rows")
    content = (folder / "rows" / "state.json").read_bytes()

    def read(file):
        (folder / "rows" / "state.json").write_bytes(file.read_bytes())
        encode_found(tokenizer, Columns())(folder / "rows")

    return Reader("state.json", content, read, json.loads, as_json, said="rows")


def model_folder(folder):
    config = decoder.DecoderConfig(32, 8, 12, 2, 2, 1, 4, 16)
    target = folder / "model"
    hf.save_params(target, decoder.init_params(jax.random.key(0), config), config)
    return config, target


def model_configuration(folder):
    _, target = model_folder(folder)
    read = lambda file: hf.load_config(file.parent)
    content = (target / "config.json").read_bytes()
    return Reader("config.json", content, read, json.loads, as_json)


def weights(folder):
    config, target = model_folder(folder)
    content = (target / "model.safetensors").read_bytes()
    return Reader("model.safetensors", content, lambda file: hf.load_params(file.parent, config))


def weights_header(folder):
    """The header alone is mutated: it may lie about offsets, shapes and dtypes."""
    config, target = model_folder(folder)
    content = (target / "model.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, body = content[8 : 8 + size], content[8 + size :]

    def written(value):
        text = json.dumps(value).encode()
        return len(text).to_bytes(8, "little") + text + body

    reader = Reader("model.safetensors", content, lambda file: hf.load_params(file.parent, config))
    reader.mutants = lambda draw: (
        written(mutated_value(json.loads(header), draw)) for _ in iter(int, 1)
    )
    return reader


def weights_index(folder):
    """Two files and an index, which may point anywhere."""
    config, target = model_folder(folder)
    shutil.rmtree(target)
    params = decoder.init_params(jax.random.key(0), config)
    hf.save_params(target, params, config, max_shard_bytes=2000)
    name = "model.safetensors.index.json"
    read = lambda file: hf.load_params(file.parent, config)
    return Reader(name, (target / name).read_bytes(), read, json.loads, as_json)


def evaluation_log(folder):
    log = {
        "retain": tofu_log.SetLog(
            answer_loss=np.array([0.5, 0.25]),
            paraphrase_loss=np.array([0.5, 0.25]),
            perturbed_loss=np.array([[0.5, 1.0], [0.25, 2.0]]),
            answer_tokens=np.array([3, 4]),
            rougeL=np.array([0.5, 1.0]),
            texts=[("a", "b", "c"), ("d", "e", "f")],
        )
    }
    file = tofu_log.write_log(log, folder / "log.json")
    return Reader("log.json", file.read_bytes(), tofu_log.read_log, json.loads, as_json)


def tokenizer(folder):
    data = fictional.generate(0, authors=2, questions=2)["full"]
    fictional.train_tokenizer(data, vocab_size=300).save_pretrained(folder / "model")
    content = (folder / "model" / "tokenizer_config.json").read_bytes()
    read = lambda file: load_tokenizer(str(file.parent))
    return Reader("tokenizer_config.json", content, read, json.loads, as_json)


def table(folder):
    row = {"layer": "total", "risk": "unlearn", "value": 1.0}
    tables.write_part(folder, "g_effect", "npo", 0, [row] * 5)
    tables.merge(folder, ["npo"])
    content = (folder / "g_effect.parquet").read_bytes()
    return Reader("g_effect.parquet", content, lambda file: tables.read(file.parent, "g_effect"))


def records(folder):
    content = as_lines([{"step": i, "objective": "npo", "loss": 0.5} for i in range(4)])
    return Reader("metrics.jsonl", content, files.records, lines, as_lines)


def open_unlearning(folder):
    losses = lambda *values: {"value_by_index": {str(i): v for i, v in enumerate(values)}}
    one, several = {"avg_loss": 0.5, "prob": 0.6}, {"avg_loss": [0.5, 1.0], "prob": [0.6, 0.3]}
    recall = {"rouge1_recall": 0.5, "rougeL_recall": 0.25}
    metrics = {"Prob": one, "PARA_Prob": one, "PERT_Prob": several, "ROUGE": recall}
    log = {f"retain_Q_A_{name}": losses(entry, entry) for name, entry in metrics.items()}
    return Reader("log.json", as_json(log), tofu_log.read_log, json.loads, as_json)


# ------------------------------------------------------------------------- files of a run's folder

NUMBERS = {"forget_nll": 0.5, "forget_es": 0.9, "retain_nll": 0.5, "retain_es": 0.9}
DONE = NUMBERS | {"steps": 4, "of_steps": 4}


def lines_of(rows, name, read):
    return Reader(name, as_lines(rows), read, lines, as_lines)


def results(folder):
    files.write_text(folder / "config.yaml", dump(TINY))
    broken = {"step": 2, "layer": "block_0", "sample": 1, "samples": 2}
    models = {BASE: NUMBERS, "npo": DONE, "ga": DONE | {"steps": 2, "diverged": broken}}

    def read(file):
        models, _ = summary.read_run(file.parent)
        summary.summary_table(file.parent, models)
        summary.warning(models[BASE])
        for name in models.keys() - {BASE}:
            verdict(name, models, None)

    return Reader("results.json", as_json({"models": models}), read, json.loads, as_json)


def result(folder):
    def read(file):
        stored.finished(RunFolder(file.parents[2]), replace(objectives={"npo": Objective()}))

    name = "objectives/npo/result.json"
    (folder / name).parent.mkdir(parents=True)
    return Reader(name, as_json(DONE | {"steps": 2}), read, json.loads, as_json)


def run_starts(folder):
    starts.note(RunFolder(folder), jax.devices()[:1])
    rows = starts.read(RunFolder(folder)) * 2

    def read(file):
        for start in starts.read(RunFolder(file.parent)):
            assert isinstance(start["date"], str) and isinstance(start["versions"], dict)

    return lines_of(rows, "starts.jsonl", read)


def timings(folder):
    part = {"stage": "npo", "part": "train", "seconds": 1.5}
    read = lambda file: summary.stage_seconds(file.parent)
    return lines_of([part, part | {"part": None}] * 2, "timings.jsonl", read)


def sealed(folder):
    files.append(folder / "metrics.jsonl", {"step": 0, "objective": "npo"})
    run = RunFolder(folder)
    manifest.seal(run, "npo", [run.metrics], redo=run.metrics, before=1)
    manifest.seal(run, manifest.TEXTS, [run.metrics])
    content = run.manifest.read_bytes()

    def read(file):
        manifest.listed(run)
        manifest.check(run)

    return Reader("manifest.jsonl", content, read, lines, as_lines)


def inputs_of_run(folder):
    content = as_json({"model": "0" * 64, "data.forget": "1" * 64})
    read = lambda file: resume.check_weights(RunFolder(file.parent), TINY)
    return Reader("inputs.json", content, read, json.loads, as_json)


def steps_of_run(folder):
    rows = [{"step": i, "objective": "npo", "loss": 0.5} for i in range(4)]
    return lines_of(rows, "metrics.jsonl", lambda file: files.cut_back(file, "npo", 9))


def evaluation(folder):
    row = {"metric": "extraction_strength", "definition": "extraction_strength.suffix"}
    row |= {"set": "forget", "value": 0.5}
    none = {"metric": "mia_loss", "definition": "x", "set": "forget", "value": None, "reason": "y"}
    suites = {"memorization": {"settings": {}, "results": [row, none]}}
    least = {"step": 2, "forget_es": 0.1, "retain_es": 0.9}
    best = {"evaluated": [2], "last": 4, "least_forget_es": least, "best_forget_quality": None}
    content = {"models": {BASE: suites, "npo": suites}, "steps": {"npo": best}}

    def read(file):
        found = evaluation_table.read(file.parent)
        evaluation_table.evaluation_table(found["models"])
        evaluation_table.reasons(found["models"])
        evaluation_table.best_steps_table(found.get("steps", {}))

    return Reader("evaluation.json", as_json(content), read, json.loads, as_json)


def attack_row(step, attack="5"):
    names = {"model": "npo", "attack": attack, "samples": 5, "step": step}
    return names | {"forget_nll": 1.0, "forget_es": 0.1, "unseen_es": 0.1, "effect": 0.5}


def attack_part(folder):
    settings = attack_results.key(Settings(1, 0.1, 2), "5", (0,))
    part = {"settings": settings, "before": {"forget_es": 0.9, "unseen_es": None}, "layers": []}
    content = as_json(part | {"records": [attack_row(0), attack_row(1)]})
    name = "relearn/npo-5.json"
    (folder / "relearn").mkdir()

    def read(file):
        config = replace(objectives={"npo": Objective()})
        attack_results.write_tables(RunFolder(file.parents[1]), config, Settings(1, 0.1, 2))

    return Reader(name, content, read, json.loads, as_json)


def attacks(folder):
    back = {"status": "recovered", "step": 3, "tried": 5, "target": 0.5}
    ends = {"final_forget_nll": 1.0, "final_forget_es": 0.5, "final_unseen_es": None}
    attack = {"samples": 5, "whole": back, "unseen": back} | ends
    model = {"forget_nll": 1.0, "forget_es": 0.1, "attacks": {"5": attack, "int8": attack}}
    settings = {"steps": 5, "lr": 0.1, "batch_size": 2}
    content = {"settings": settings, "models": {BASE: model, "npo": model}}

    def read(file):
        found = attack_results.read(file.parent)
        relearn_table.relearn_table(found)
        relearn_table.figure_tables(file.parent, TINY, found)
        verdict("npo", {BASE: NUMBERS, "npo": DONE}, found)

    return Reader("relearn.json", as_json(content), read, json.loads, as_json)


def attack_rows(folder):
    one = {"forget_nll": 1.0, "forget_es": 0.1, "attacks": {}}
    read = lambda file: relearn_table.figure_tables(file.parent, TINY, {"models": {BASE: one}})
    return lines_of([attack_row(0), attack_row(1)], "relearn.jsonl", read)


READERS = (
    configuration, rows, json_rows, conversations, documents, csv_rows, parquet_rows, saved_dataset,
    model_configuration, weights, weights_header, weights_index,
    evaluation_log, open_unlearning, tokenizer, table, records,
    results, result, run_starts, timings, sealed, inputs_of_run, steps_of_run,
    evaluation, attack_part, attacks, attack_rows,
)  # fmt: skip


@pytest.mark.parametrize("make", READERS)
@pytest.mark.parametrize(
    "cases",
    [
        pytest.param(1000, marks=pytest.mark.slow),
        pytest.param(10_000, marks=pytest.mark.nightly),
    ],
)
def test_a_mutant_is_read_or_refused_in_words(make, cases, tmp_path):
    reader, draw = make(tmp_path), np.random.default_rng(cases)
    home = tmp_path / "model" if (tmp_path / "model" / "config.json").exists() else tmp_path
    if reader.name == "tokenizer_config.json":
        home = tmp_path / "model"
    file, read, refused = home / reader.name, 0, 0
    file.write_bytes(reader.content)
    reader.read(file)  # as it is, it can be read
    found = reader.mutants(draw)
    tracemalloc.start()
    try:
        for case in range(cases):
            if case == cases // 10:
                # Counting memory makes the others three times as slow.
                assert tracemalloc.get_traced_memory()[1] < 300e6
                tracemalloc.stop()
            content = next(found)
            file.write_bytes(content)
            try:
                reader.read(file)
                read += 1
            except (ValueError, OSError) as error:
                refused += 1
                assert str(error).strip(), f"an error without words for {content[:200]!r}"
                assert str(home) in str(error) or re.search(reader.said, str(error)), (
                    f"{type(error).__name__}: {str(error)[:300]!r} names no place;"
                    f" {content[:300]!r}"
                )
            except Exception as error:
                pytest.fail(f"{type(error).__name__}: {error}, from {content[:300]!r}")
    finally:
        tracemalloc.stop()  # of a test that fails before
    print(f"{make.__name__}: {read} read, {refused} refused")
    assert refused > cases // 20
