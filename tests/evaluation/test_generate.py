"""Answers in text: one by one or in batches, on one device or eight, they are the same."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.data import encoding, fictional, packing, planning
from jaxunlearn.data.prompts import Prompt
from jaxunlearn.evaluation import generate
from jaxunlearn.models import decoder, sharding
from jaxunlearn.models.decoder import Sampling, decode

ROWS = fictional.generate(0, authors=3, questions=3)["full"]
QUESTIONS = [row["question"] for row in ROWS[:7]]
CONTEXT, NEW = 96, 6
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer():
    return fictional.train_tokenizer(ROWS, vocab_size=400)


@pytest.fixture(scope="module")
def config(tokenizer):
    return decoder.DecoderConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        context=CONTEXT,
    )


@pytest.fixture(scope="module")
def params(config):
    """Far from uniform: kernels of about 0.2."""
    return jax.tree.map(
        lambda x: 10 * (x - (x == 1)) + (x == 1), decoder.init_params(jax.random.key(0), config)
    )


@pytest.fixture
def answers(params, config, tokenizer):
    return partial(generate.answers, params, config, tokenizer, max_new_tokens=NEW)


def test_answers_are_the_best_tokens_one_by_one(answers, params, config, tokenizer):
    keep = lambda logits, labels: logits
    model = jax.jit(lambda batch: decoder.forward(params, batch, config, head=keep).labels[0, 0])
    result = answers(QUESTIONS, batch_size=4)
    assert len(set(result)) > 1
    assert answers(QUESTIONS[::-1], batch_size=4)[::-1] == result
    for question, answer in zip(QUESTIONS, result, strict=True):
        tokens = list(encoding.encode_prompt(tokenizer, question))
        end = len(tokens) + NEW
        while len(tokens) < end and tokens[-1] != tokenizer.eos_token_id:
            prefix = planning.Sample(np.array([*tokens, 0], np.int32), len(tokens))
            tokens.append(int(model(packing.padded([prefix], width=CONTEXT)).argmax()))
        answer_tokens = tokens[len(encoding.encode_prompt(tokenizer, question)) :]
        assert answer == tokenizer.decode(answer_tokens, skip_special_tokens=True)


@pytest.mark.parametrize("drawn", [False, True])
def test_neither_batch_nor_mesh_has_a_part_in_an_answer(answers, params, config, drawn):
    options = {"sampling": Sampling(1.0), "key": jax.random.key(4)} if drawn else {}
    expected = answers(QUESTIONS, batch_size=100, **options)
    assert answers(QUESTIONS, batch_size=3, **options) == expected
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    placed = sharding.place(params, sharding.param_shardings(config, mesh))
    with jax.set_mesh(mesh):
        sharded = partial(generate.answers, placed, *answers.args[1:], **answers.keywords)
        assert sharded(QUESTIONS, batch_size=5, **options) == expected


def test_equal_questions_are_drawn_apart(answers):
    draw = partial(answers, QUESTIONS[:1] * 8, batch_size=8, sampling=Sampling(1.0))
    first = draw(key=jax.random.key(0))
    assert len(set(first)) > 4
    assert draw(key=jax.random.key(0)) == first != draw(key=jax.random.key(1))


def test_texts_end_at_eos_and_skip_special_tokens(answers, tokenizer, monkeypatch):
    """And come back in the order of the questions, whatever the order of decoding."""
    batches = []

    def echo(params, tokens, lengths, config, **options):
        """Repeats each prompt, then writes BOS, EOS and what must not be read."""
        batches.append(tokens.shape)
        assert options["eos_token_id"] == tokenizer.eos_token_id
        assert options["max_new_tokens"] == NEW
        out, ends = np.full((len(tokens), CONTEXT), 70, np.int32), []
        for row, (prompt, length) in enumerate(zip(np.asarray(tokens), lengths, strict=True)):
            assert not prompt[: len(prompt) - length].any()
            new = [*prompt[-length:], tokenizer.bos_token_id, tokenizer.eos_token_id]
            out[row, : len(new)] = new
            ends.append(len(new))
        return jnp.asarray(out), jnp.asarray(ends)

    monkeypatch.setattr(decode, "generate", echo)
    expected = [f"[INST] {question} [/INST]" for question in QUESTIONS]
    assert answers(QUESTIONS, batch_size=3) == expected
    assert {rows for rows, _ in batches} == {3} and len(batches) == 3
    assert all(width % generate.WIDTH_STEP == 0 for _, width in batches)


def test_chat_prompts(answers, tokenizer):
    tokenizer.chat_template = CHAT
    try:
        assert answers(QUESTIONS[:1], prompt=Prompt("chat"), batch_size=1) != answers(
            QUESTIONS[:1], batch_size=1
        )
    finally:
        tokenizer.chat_template = None


def test_the_context_may_be_filled(answers, tokenizer):
    longest = max(len(encoding.encode_prompt(tokenizer, question)) for question in QUESTIONS)
    fits = partial(answers, QUESTIONS, batch_size=7)
    assert len(fits(max_new_tokens=CONTEXT - longest)) == 7
    with pytest.raises(ValueError, match=rf"1 prompt.* max_new_tokens={CONTEXT - longest + 1}"):
        fits(max_new_tokens=CONTEXT - longest + 1)


def test_a_long_prompt_does_not_shorten_the_continuations_of_others(params, config, tokenizer):
    encoded = [encoding.encode_prompt(tokenizer, QUESTIONS[0])]
    encoded.append(np.resize(encoded[0], CONTEXT - 3))
    go_on = partial(generate.continuations, params, config, tokenizer, batch_size=2)
    new = CONTEXT - len(encoded[0])
    together = go_on(encoded, max_new_tokens=new)
    assert together[:1] == go_on(encoded[:1], max_new_tokens=new)
    assert together[1:] == go_on(encoded[1:], max_new_tokens=3)  # its context is full then
    with pytest.raises(ValueError, match="leave no room for max_new_tokens=1 "):
        go_on([np.resize(encoded[0], CONTEXT)], max_new_tokens=new)


def test_bad_input(answers, tokenizer):
    assert answers([], batch_size=4) == []
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        answers(QUESTIONS, batch_size=0)
    with pytest.raises(
        ValueError, match=r"2 prompt\(s\) leave no room for max_new_tokens=6 in .* context of 96 .*"
        r"question 1 of \d+ tokens, 'Who is who\? "
    ):  # fmt: skip
        answers([QUESTIONS[0], *["Who is who? " * 30] * 2], batch_size=4)
    eos, tokenizer.eos_token = tokenizer.eos_token, None
    try:
        with pytest.raises(ValueError, match="no EOS token"):
            answers(QUESTIONS, batch_size=4)
    finally:
        tokenizer.eos_token = eos
