"""Labels are the answer and one EOS: exactly, for every style, tokenizer and row."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from jaxunlearn.data.encoder import Encoder
from jaxunlearn.data.encoding import (
    answer_text,
    encode,
    encode_documents,
    encode_prompt,
    encode_rows,
    load_tokenizer,
    pieces,
)
from jaxunlearn.data.fictional import generate, train_tokenizer
from jaxunlearn.data.packing import padded
from jaxunlearn.data.prompts import Prompt

CHAT = Prompt("chat")
ROWS = generate(0, authors=4, questions=6)["full"]
LLAMA_2_CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
LINE_BREAK_AFTER_EOS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}"
    "{{ eos_token }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
# Ignores add_generation_prompt: the words that begin an answer are labels.
NO_GENERATION_PROMPT = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
)
THINKS = (
    "{% for m in messages %}{{ 'Q: ' if m['role'] == 'user' else 'A: <think></think>' }}"
    "{{ m['content'] }}{{ eos_token if m['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}A: {% endif %}"
)
NO_EOS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
NO_PREFIX = (
    "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[answer]{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(ROWS, vocab_size=400)


@pytest.fixture
def chat(tokenizer):
    def with_template(template):
        tokenizer.chat_template = template
        return tokenizer

    yield with_template
    tokenizer.chat_template = None


def test_tofu_labels_are_the_answer_and_the_eos(tokenizer):
    for row in ROWS:
        tokens, first_label = encode(tokenizer, row["question"], row["answer"])
        assert tokens.dtype == np.int32
        assert tokenizer.decode(tokens[1:first_label]) == f"[INST] {row['question']} [/INST]"
        assert tokenizer.decode(tokens[first_label:-1]) == row["answer"]
        assert tokens[0] == tokenizer.bos_token_id and tokens[-1] == tokenizer.eos_token_id
        special = [tokenizer.bos_token_id, tokenizer.eos_token_id]
        assert np.isin(tokens, special).sum() == 2
        prompt = encode_prompt(tokenizer, row["question"])
        np.testing.assert_array_equal(prompt, tokens[:first_label])


def test_the_eos_is_attended_and_a_label_even_where_it_pads(tokenizer):
    tokenizer.pad_token = tokenizer.eos_token
    sequences = encode_rows(tokenizer, ROWS, context=256).sequences
    batch = padded(sequences, width=256)
    for row, (tokens, first_label) in enumerate(sequences):
        assert (batch.segments[row] >= 0).sum() == len(tokens)
        count = len(tokens) - first_label
        assert batch.label_tokens[row, count - 1] == tokenizer.eos_token_id
        assert batch.mask[row].sum() == count
    tokenizer.pad_token = None


@pytest.mark.parametrize(
    "text", ["He was born in Basel.", "naïve ☕ 東京 مرحبا 👩‍👩‍👧", "  two  spaces"]
)
def test_pieces_are_the_text_of_every_token(tokenizer, text):
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = pieces(tokenizer, tokens)
    assert len(found) == len(tokens)
    assert "".join(found) == tokenizer.decode(tokens)
    assert pieces(tokenizer, [*tokens, tokenizer.eos_token_id])[-1] == tokenizer.eos_token
    assert not any("\ufffd" in piece for piece in found)


def test_pieces_of_the_llama_2_tokenizer(shared_data):
    tokenizer = load_tokenizer(str(shared_data / "tokenizers" / "llama2"))
    text = "Jaime Vásquez's 東京 novel"
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = pieces(tokenizer, tokens)
    assert "".join(found) == tokenizer.decode(tokens) and found[1].strip() in text


def test_rows_are_encoded_as_one_by_one(tokenizer):
    encoded = encode_rows(tokenizer, ROWS, context=256)
    assert encoded.kept_ids.tolist() == list(range(len(ROWS))) and encoded.dropped == []
    for row, sequence in zip(ROWS, encoded.sequences, strict=True):
        alone = encode(tokenizer, row["question"], row["answer"])
        np.testing.assert_array_equal(alone.tokens, sequence.tokens)
        assert alone.first_label == sequence.first_label


def test_long_rows_are_listed_or_dropped_and_never_cut(tokenizer):
    rows = [*ROWS[:2], {**ROWS[2], "answer": "very " * 300 + "long."}, *ROWS[3:5]]
    with pytest.raises(ValueError, match=r"mine:2: the row has \d+ .* of 128; set .* drop"):
        encode_rows(tokenizer, rows, context=128, source="mine")
    encoded = encode_rows(tokenizer, rows, context=128, too_long="drop")
    assert encoded.dropped == [2] and encoded.kept_ids.tolist() == [0, 1, 3, 4]
    assert tokenizer.decode(encoded.sequences[2].tokens[1:-1]).endswith(rows[3]["answer"])


def test_every_row_may_be_dropped(tokenizer):
    encoded = encode_rows(tokenizer, ROWS[:2], context=3, too_long="drop")
    assert encoded.sequences == [] and encoded.dropped == [0, 1]


@pytest.mark.parametrize("answer", ["", "  ", None, 3])
def test_a_missing_answer_is_named_by_source_and_row(tokenizer, answer):
    rows = [ROWS[0], {"question": "Who?", "answer": answer}]
    with pytest.raises(ValueError, match="forget05:1: expected a non-empty 'answer'"):
        encode_rows(tokenizer, rows, context=64, source="forget05")


@pytest.mark.parametrize("style", ["tofu", "chat"])
def test_a_text_that_spells_a_special_token_is_refused(chat, style):
    with pytest.raises(ValueError, match="spells a BOS or EOS"):
        encode(chat(LLAMA_2_CHAT), "Who?", "Nobody</s> at all.", prompt=Prompt(style))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompt": Prompt("alpaca")}, "'alpaca' is not a style; expected 'tofu' or 'chat'"),
        ({"prompt": Prompt("chta")}, "perhaps you meant 'chat'"),
        ({"prompt": Prompt(system="Be brief.")}, "'tofu' has no system prompt and no examples"),
        ({"prompt": Prompt(examples=ROWS[:1])}, "'tofu' has no system prompt and no examples"),
        ({"too_long": "cut"}, "too_long='cut': expected 'error' or 'drop'"),
        ({"prompt": CHAT}, "no chat template; set `prompt: tofu`"),
    ],
)
def test_bad_options_are_named(tokenizer, changed, message):
    with pytest.raises(ValueError, match=message):
        encode_rows(tokenizer, ROWS, context=64, **changed)


def test_chat_labels_are_the_templates_answer_and_its_eos(chat):
    tokenizer = chat(LLAMA_2_CHAT)
    row = ROWS[0]
    tokens, first_label = encode(tokenizer, row["question"], row["answer"], prompt=CHAT)
    assert tokenizer.decode(tokens[:first_label]) == f"<s>[INST] {row['question']} [/INST]"
    assert tokenizer.decode(tokens[first_label:]) == f" {row['answer']} </s>"
    prompt = encode_prompt(tokenizer, row["question"], prompt=CHAT)
    np.testing.assert_array_equal(prompt, tokens[:first_label])


def test_chat_labels_end_at_the_eos(chat):
    tokenizer = chat(LINE_BREAK_AFTER_EOS)
    row = ROWS[0]
    tokens, first_label = encode(tokenizer, row["question"], row["answer"], prompt=CHAT)
    assert tokenizer.decode(tokens[first_label:]) == row["answer"] + "</s>"
    assert tokens[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (NO_EOS, "does not end an answer with '</s>'"),
        (NO_PREFIX, "not how its full text begins"),
        (NO_GENERATION_PROMPT, r"makes 'assistant: Nobody.' of the answer 'Nobody.'"),
        (THINKS, r"makes '<think></think> ?Nobody.' of the answer"),
    ],
)
def test_chat_templates_without_exact_labels_are_refused(chat, template, message):
    with pytest.raises(ValueError, match=message):
        encode(chat(template), "Who?", "Nobody.", prompt=CHAT)


def test_a_tokenizer_without_eos_is_refused(tokenizer):
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no EOS"):
        encode(tokenizer, "Who?", "Nobody.")
    tokenizer.eos_token = "</s>"


def test_an_absent_tokenizer_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer at .*absent"):
        load_tokenizer(str(tmp_path / "absent"))


@pytest.fixture(scope="module")
def llama2(shared_data):
    return load_tokenizer(shared_data / "tokenizers/llama2")


@pytest.mark.golden
@pytest.mark.stories
@pytest.mark.parametrize("model", ["llama2-7b_full_wd0.01", "llama2-7b_retain90_wd0.01"])
def test_label_counts_are_those_the_tofu_authors_logged(shared_data, llama2, model):
    log = json.loads((shared_data / f"tofu_eval_logs/{model}.json").read_text())
    for task in log["tasks"].values():
        rows = read_jsonl(shared_data / f"tofu/{task['data']}.jsonl")[: task["n"]]
        assert label_counts(llama2, rows, "answer") == task["num_token_gt"]
        paraphrase = "paraphrased_answer" if "paraphrased_answer" in rows[0] else "answer"
        assert label_counts(llama2, rows, paraphrase) == task["num_token_paraphrased"]
        for j in range(len(rows[0]["perturbed_answer"])):
            wrong = [{**row, "wrong": row["perturbed_answer"][j]} for row in rows]
            logged = [counts[j] for counts in task["num_token_perturb"]]
            assert label_counts(llama2, wrong, "wrong") == logged


@pytest.mark.stories
@pytest.mark.parametrize("folder", ["tokenizers/llama2", "models/stories260k"])
def test_tofu_answers_come_back_from_their_labels(shared_data, folder):
    tokenizer = load_tokenizer(shared_data / folder)
    rows = read_jsonl(shared_data / "tofu/forget10.jsonl")
    for row, (tokens, first_label) in zip(
        rows, encode_rows(tokenizer, rows, context=2048).sequences, strict=True
    ):
        text = f"[INST] {row['question']} [/INST]{row['answer']}"
        assert tokenizer.decode(tokens[1:-1]) == text
        prompt = encode_prompt(tokenizer, row["question"])
        assert len(prompt) == first_label
        merged = prompt[-1] != tokens[first_label - 1]
        assert not merged or row["answer"][0] in "\"'"
        answer = row["answer"][1:] if merged else row["answer"]
        assert tokenizer.decode(tokens[first_label:-1]) == answer


def label_counts(tokenizer, rows, column):
    pairs = [{"question": row["question"], "answer": row[column]} for row in rows]
    sequences = encode_rows(tokenizer, pairs, context=512).sequences
    return [len(s.tokens) - s.first_label for s in sequences]


def read_jsonl(file):
    return [json.loads(line) for line in file.read_text().split("\n") if line]


def same(samples, others):
    """Whether two lists of samples are equal."""
    pairs = zip(samples, others, strict=True)
    return all(a.first_label == b.first_label and (a.tokens == b.tokens).all() for a, b in pairs)


def test_an_encoder_encodes_splits_and_notes_what_it_leaves_out(tokenizer):
    long = {"question": "q " * 200, "answer": "a"}
    encoder = Encoder(tokenizer, context=96, too_long="drop")
    assert encoder.encode([], "nothing") == ([], [])
    samples, ids = encoder.encode([ROWS[0], long, ROWS[1]], "forget")
    assert ids == [0, 2] and encoder.notes == ["forget: 1 rows over 96 tokens left out"]
    alone = [encoder.one(row) for row in ROWS[:2]]
    assert same(samples, alone) and samples[0].labels == len(samples[0].tokens[samples[0][1] :])
    with pytest.raises(ValueError, match="forget: no row fits the context of 96 tokens"):
        encoder.encode([long], "forget")
    strict = Encoder(tokenizer, context=96, too_long="error")
    with pytest.raises(ValueError, match="too_long: drop"):
        strict.encode([long], "forget")


def test_an_encoder_encodes_several_pairs_of_a_row_or_leaves_the_row_out(tokenizer):
    encoder = Encoder(tokenizer, context=96, too_long="drop")
    rows = [ROWS[0], ROWS[1] | {"perturbed_answer": ["a " * 200]}, ROWS[2]]
    answers = lambda row: [row["answer"], *row["perturbed_answer"]]
    pairs = lambda row: ((row["question"], answer) for answer in answers(row))
    items = encoder.items(rows, pairs, "forget_perturbed")
    assert items.rows == [ROWS[0], ROWS[2]]
    for row, samples in zip(items.rows, items.sequences, strict=True):
        alone = [encoder.one({"question": q, "answer": a}) for q, a in pairs(row)]
        assert same(samples, alone)
    with pytest.raises(ValueError, match="forget_perturbed: no row fits"):
        encoder.items(rows[1:2], pairs, "forget_perturbed")


def test_code_that_comes_with_a_tokenizer_is_never_run(monkeypatch):
    import transformers

    options = {}
    load = lambda name, **given: options.update(given)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", load)
    load_tokenizer("a/b")
    assert options == {"trust_remote_code": False}


LOAD = """
import os, sys
sys.modules["torch"] = None  # as where it is not installed
before = dict(os.environ)
from jaxunlearn.data import fictional, load_tokenizer
trained = fictional.train_tokenizer([{"text": "a b"}], vocab_size=259)
trained.save_pretrained(sys.argv[1])
load_tokenizer(sys.argv[1])
assert dict(os.environ) == before
"""


@pytest.mark.parametrize("chosen", [None, "0"])
def test_nobody_is_advised_to_install_pytorch(tmp_path, chosen):
    """And what others let transformers say stays as they have it."""
    name = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    environment = {key: value for key, value in os.environ.items() if key != name}
    environment |= {} if chosen is None else {name: chosen}
    command = [sys.executable, "-c", LOAD, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout + done.stderr == ""


# ------------------------------------------------------------------------------- chat prompts

# As the template of Llama 3 does, it prints the date, and its system prompt has a place of its own.
WITH_SYSTEM_AND_DATE = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = 'none' %}{% endif %}"
    "({{ date_string }}|{{ system }}){% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{{ eos_token if m.role == 'assistant' else '' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
EXAMPLES = ({"question": "1?", "answer": "One."}, {"question": "2?", "answer": "Two."})
HISTORY = ({"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."})
OWN = {"role": "system", "content": "Own."}
SHOTS = "<user>1?<assistant>One.</s><user>2?<assistant>Two.</s>"
EARLIER = "<user>Hi.<assistant>Hello.</s>"


@pytest.mark.parametrize(
    ("prompt", "history", "expected"),
    [
        (CHAT, (), "(10 Apr 2025|none)"),
        (Prompt("chat", system="Brief.", date="1 May 2026"), (), "(1 May 2026|Brief.)"),
        (Prompt("chat", examples=EXAMPLES), HISTORY, f"(10 Apr 2025|none){SHOTS}{EARLIER}"),
        (
            Prompt("chat", system="Brief.", examples=EXAMPLES),
            (OWN, *HISTORY),
            f"(10 Apr 2025|Own.){SHOTS}{EARLIER}",
        ),
    ],
)
def test_a_chat_prompt_has_all_its_turns_in_order(chat, prompt, history, expected):
    tokenizer = chat(WITH_SYSTEM_AND_DATE)
    sample = encode(tokenizer, "Who?", "Ana.", prompt=prompt, history=history)
    assert (
        tokenizer.decode(sample.tokens[: sample.first_label]) == f"{expected}<user>Who?<assistant>"
    )
    assert tokenizer.decode(sample.tokens[sample.first_label :]) == "Ana.</s>"
    alone = encode_prompt(tokenizer, "Who?", prompt=prompt, history=history)
    np.testing.assert_array_equal(alone, sample.tokens[: sample.first_label])


def test_an_encoder_keeps_the_turns_of_a_row(chat):
    tokenizer = chat(WITH_SYSTEM_AND_DATE)
    row = {"question": "Who?", "answer": "Ana.", "history": [OWN]}
    encoder = Encoder(tokenizer, prompt=CHAT, context=96, too_long="error")
    (sample,), _ = encoder.encode([row], "rows")
    assert "Own.)<user>Who?" in tokenizer.decode(sample.tokens)
    assert same([encoder.one(row)], [sample])
    np.testing.assert_array_equal(encoder.question(row), sample.tokens[: sample.first_label])
    items = encoder.items([row], lambda row: [("Who?", "Ana."), ("Who?", "Bo.")], "rows")
    assert same(items.sequences[0][:1], [sample])
    assert encoder.own([row], "rows").rows == [row]


def test_the_style_tofu_has_no_earlier_turns(tokenizer):
    rows = [ROWS[0], {"question": "Who?", "answer": "Ana.", "history": [OWN]}]
    message = "mine:1: there are turns before the question, .* 'tofu' .* set `prompt: chat`"
    with pytest.raises(ValueError, match=message):
        encode_rows(tokenizer, rows, context=96, source="mine")
    with pytest.raises(ValueError, match="turns before the question"):
        encode_prompt(tokenizer, "Who?", history=[OWN])
    single = encode(tokenizer, "Who?", "Ana.", history=[])
    assert same([single], [encode(tokenizer, "Who?", "Ana.")])


def test_no_text_of_a_prompt_may_spell_a_special_token(chat):
    tokenizer, bad = chat(WITH_SYSTEM_AND_DATE), "So </s> it"
    with pytest.raises(ValueError, match="prompt: the text spells a BOS or EOS token, '</s>'"):
        encode(tokenizer, "Who?", "Ana.", prompt=Prompt("chat", system=bad))
    with pytest.raises(ValueError, match="spells a BOS or EOS token, '</s>'"):
        encode(tokenizer, "Who?", "Ana.", prompt=CHAT, history=[OWN | {"content": bad}])


def test_a_template_that_refuses_a_role_is_quoted(chat):
    refuses = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    )
    with pytest.raises(
        ValueError, match="refuses conversations with the roles system, user: no sys"
    ):
        encode(chat(refuses), "Who?", "Ana.", prompt=CHAT, history=[OWN])


@pytest.mark.parametrize("broken", ["{{ 1 / 0 }}", "{{ 'a' + 1 }}", "{{ messages[9].role }}"])
def test_a_template_that_fails_is_quoted(chat, broken):
    """It is a program, and fails in other ways than by refusing."""
    with pytest.raises(ValueError, match="the chat template refuses conversations"):
        encode(chat(broken), "Who?", "Ana.", prompt=CHAT)


# ------------------------------------------------------------------------------- free text

TEXTS = ["Once upon a time there was a poet.", "The end. " * 9, "naïve ☕ 東京"]
DOCUMENTS = [{"text": text, "document": i} for i, text in enumerate(TEXTS)]


@pytest.fixture(params=[True, False], ids=["bos", "no_bos"])
def reader(request):
    tokenizer = train_tokenizer(ROWS, vocab_size=300)
    if not request.param:
        tokenizer.bos_token = None
    return tokenizer


@pytest.mark.parametrize("chunk_tokens", [2, 3, 7, 16, 500])
def test_every_token_of_a_document_is_a_label_once(reader, chunk_tokens):
    encoded = encode_documents(reader, DOCUMENTS, chunk_tokens=chunk_tokens)
    for i, text in enumerate(TEXTS):
        tokens = reader(text, add_special_tokens=False)["input_ids"] + [reader.eos_token_id]
        chunks = [s for s, row in zip(encoded.sequences, encoded.kept_ids, strict=True) if row == i]
        labels = [token for chunk in chunks for token in chunk.tokens[1:].tolist()]
        assert all(chunk.first_label == 1 and chunk.labels >= 1 for chunk in chunks)
        assert all(len(chunk.tokens) <= chunk_tokens for chunk in chunks)
        # All but the last chunk are full.
        assert all(len(chunk.tokens) == chunk_tokens for chunk in chunks[:-1])
        assert sum(reader.eos_token_id in chunk.tokens for chunk in chunks) == 1
        if reader.bos_token is not None:
            assert labels == tokens
            assert all(chunk.tokens[0] == reader.bos_token_id for chunk in chunks)
        else:
            assert labels == tokens[1:]
            before = [chunk.tokens[-1] for chunk in chunks[:-1]]
            assert [chunk.tokens[0] for chunk in chunks] == [tokens[0], *before]
    assert encoded.kept_ids.tolist() == sorted(encoded.kept_ids) and encoded.dropped == []


def test_an_encoder_cuts_documents_into_chunks(tokenizer):
    encoder = Encoder(tokenizer, context=96, too_long="error", chunk_tokens=8)
    samples, ids = encoder.encode(DOCUMENTS, "forget")
    expected = encode_documents(tokenizer, DOCUMENTS, chunk_tokens=8)
    assert same(samples, expected.sequences) and ids == expected.kept_ids.tolist()
    items = encoder.own(DOCUMENTS, "forget")
    assert [row["document"] for row in items.rows] == ids
    texts = [answer_text(tokenizer, DOCUMENTS[i], s) for i, s in zip(ids, samples, strict=True)]
    assert "".join(text for text, i in zip(texts, ids, strict=True) if i == 1) == TEXTS[1]
    whole = Encoder(tokenizer, context=96, too_long="error").encode(DOCUMENTS, "forget")[0]
    assert same(whole, encode_documents(tokenizer, DOCUMENTS, chunk_tokens=96).sequences)
    with pytest.raises(ValueError, match=r"data\.chunk_tokens: 97 is over the model's context"):
        Encoder(tokenizer, context=96, too_long="error", chunk_tokens=97)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" ", "mine:1: expected a non-empty 'text'"),
        ("a</s>b", "mine:1: the text spells a BOS or EOS token, '</s>': 'a</s>b'"),
    ],
)
def test_a_document_without_tokens_of_its_own_is_refused(tokenizer, text, message):
    with pytest.raises(ValueError, match=message):
        rows = [DOCUMENTS[0], {"text": text}]
        encode_documents(tokenizer, rows, chunk_tokens=8, source="mine")


@pytest.mark.parametrize("content", ["null", "[]", "{"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_file_beside_the_tokenizer_that_is_no_object_is_named(tmp_path, name, content):
    """transformers reads it first, and says what its code ran into."""
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name}: (expected an object|not JSON)"):
        load_tokenizer(str(tmp_path))
