"""Structured output: whatever a model says has the form that was asked for, or is refused first.

MINIMAX2_SCHEMAS: outputs of m2-tiny at a high temperature, for each way in which masks are made.
"""

import asyncio
import json
import os
import random
import re
import sys

import jsonschema
import minimax2 as mm
import numpy as np
import pydantic
import pytest
from minimax2 import grammar
from test_tool_calls import TOOLS

OUTPUTS = int(os.environ.get("MINIMAX2_SCHEMAS", "24"))
ASK = [{"role": "user", "content": "Who is there?"}]
HOT = {"temperature": 1.5, "top_p": 1, "top_k": 0, "max_new_tokens": 600}
PERSON = {"type": "object", "properties": {
    "name": {"type": "string", "maxLength": 12},
    "age": {"type": "integer", "minimum": 0, "maximum": 150}},
    "required": ["name", "age"], "additionalProperties": False}
CHECKS = jsonschema.Draft202012Validator.FORMAT_CHECKER
BEYOND = {**PERSON, "maxProperties": 2}  # what only llguidance knows


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=12)
    age: int = pydantic.Field(ge=0, le=150)


@pytest.fixture(params=["library", "llguidance"])
def made_by(request, monkeypatch, tiny):
    """Who makes the masks of a schema."""
    if request.param == "llguidance":
        monkeypatch.delitem(grammar._KINDS, "json_schema")
    monkeypatch.setattr(tiny, "_made_grammars", None)
    return request.param


# ---- Outputs ----


def schema(rng, depth=0):
    """A schema whose texts end soon."""
    kind = rng.randrange(9 if depth < 2 else 6)
    if kind == 0:
        return {"type": "string", "minLength": rng.randint(0, 2), "maxLength": rng.randint(2, 15)}
    if kind == 1:
        return {"enum": rng.sample(["a", "Köln", "", "\"\\\n", 5, -1.5, True, None, "日本"], 3)}
    if kind == 2:
        low = rng.randint(-300, 300)
        return {"type": "integer", "minimum": low, "maximum": low + rng.choice([0, 7, 5000])}
    if kind == 3:
        return {"type": ["boolean", "null"]}
    if kind == 4:
        return {"const": rng.choice(["x", 17, [1, {"a": None}], {"k": "</think>"}])}
    if kind == 5:
        return {"type": "string", "format": rng.choice(["date", "time", "date-time", "uuid"])}
    if kind == 6:
        low = rng.randint(0, 2)
        return {"type": "array", "items": schema(rng, depth + 1), "minItems": low,
                "maxItems": low + rng.randint(0, 2)}
    if kind == 7:
        return {"anyOf": [schema(rng, depth + 1) for _ in range(rng.randint(1, 3))]}
    names = rng.sample(["a", "b", "long name", "ü", "\"", "type"], rng.randint(0, 4))
    return {"type": "object", "properties": {name: schema(rng, depth + 1) for name in names},
            "required": [name for name in names if rng.random() < 0.6],
            "additionalProperties": False}


def test_random_outputs_validate(tiny, made_by):
    rng = random.Random(7)
    wanted = [schema(rng) for _ in range(OUTPUTS)]
    for first in range(0, OUTPUTS, 64):
        several = wanted[first:first + 64]
        for form, made in zip(several, tiny.generate(
                [{"prompt": ASK, "json_schema": form, "seed": i, "thinking": i % 2 * 9}
                 for i, form in enumerate(several)], **HOT)):
            assert made.finish_reason == "stop", (form, made)
            jsonschema.validate(json.loads(made.text), form,
                                format_checker=CHECKS)
            assert made.parsed == json.loads(made.text)
            bare = re.sub(r'"([^"\\]|\\.)*"', '""', made.text)
            assert not re.search(r"(?<![:,])\s|\s\s", bare), bare


@pytest.mark.parametrize("options, fits", [
    ({"regex": r"[a-c]{3,9}-\d{2}(x|yz)?"}, r"[a-c]{3,9}-\d{2}(x|yz)?"),
    ({"choices": ["yes", "no", "not at all", "ü\"\\"]}, r'yes|no|not at all|ü"\\'),
    ({"grammar": 'start: "so " WORD ("," WORD){0,3}\nWORD: /[a-z]{1,4}/'}, "so [a-z]+(,[a-z]+)*")])
def test_texts_fit(tiny, options, fits):
    for prompt, thinking in (("It is ", None), (ASK, 5)):
        made = tiny.generate([prompt] * 6, thinking=thinking, **HOT, **options)
        assert all(re.fullmatch(fits, one.text) and one.finish_reason == "stop" for one in made)
        assert made[0].parsed is None


# ---- What is parsed ----


def test_parsed(tiny, made_by):
    made = tiny.generate(ASK, json_schema=Person, thinking=False, seed=2, **HOT)
    assert isinstance(made.parsed, Person) and made.parsed.name == json.loads(made.text)["name"]
    again = tiny.generate(ASK, json_schema=json.dumps(Person.model_json_schema()), thinking=False,
                          seed=2, **HOT)
    assert again.text == made.text and again.parsed == made.parsed.model_dump()
    for end in ({"max_new_tokens": 4}, {"stop": "age"}):
        cut = tiny.generate(ASK, json_schema=Person, thinking=False, seed=2, **{**HOT, **end})
        assert made.text.startswith(cut.text) and cut.parsed is None


def test_what_the_models_own_validator_says(tiny):
    class Odd(Person):
        @pydantic.field_validator("age")
        @classmethod
        def never(cls, age):
            raise ValueError("too old")

    made = tiny.generate(ASK, json_schema=Odd, thinking=False, seed=2, **HOT)
    with pytest.raises(pydantic.ValidationError, match="too old"):
        made.parsed


# ---- Thinking ----


def test_begins_behind_the_thinking(tiny, made_by):
    """It thinks as it would; neither the end nor a call comes in between, however likely."""
    call, end = tiny.tokenizer.id("<minimax:tool_call>"), tiny.end_tokens[0]
    free = tiny.generate(ASK, seed=3, max_new_tokens=40)
    made = tiny.generate(ASK, seed=3, json_schema=PERSON, max_new_tokens=400)
    close = free.tokens.index(tiny.tokenizer.think_close)
    assert made.thinking == free.thinking and made.tokens[:close] == free.tokens[:close]
    jsonschema.validate(made.parsed, PERSON)
    pushed = tiny.generate(ASK, json_schema=PERSON, bias={call: 50, end: 60}, thinking=8, **HOT)
    assert pushed.thinking and not pushed.calls
    jsonschema.validate(pushed.parsed, PERSON)
    again = tiny.tokenizer.think_close
    twice = tiny.generate(ASK, json_schema=PERSON, bias={again: 99}, **HOT)
    assert twice.tokens.count(again) == 1 and twice.tokens[0] == again
    jsonschema.validate(twice.parsed, PERSON)


def test_behind_a_spelled_tag(tiny, made_by):
    """The thinking can end by letters."""
    script = tiny.tokenizer.encode("so</think>")

    def spell(ids, logits):
        if len(ids) - begin < len(script):
            logits[script[len(ids) - begin]] = 1e6

    begin = len(tiny.tokenizer.apply_chat_template(ASK))
    made = tiny.generate(ASK, json_schema=PERSON, logits_processor=spell, seed=1, **HOT)
    assert made.thinking == "so" and made.tokens[:len(script)] == script
    jsonschema.validate(made.parsed, PERSON)


@pytest.mark.parametrize("text", ["\n", "\n\n"])
@pytest.mark.parametrize("thinking", [True, 5, False])
def test_the_formats_newlines_are_no_part(tiny, made_by, thinking, text):
    """Two at most, behind a thinking alone."""
    close, newlines = tiny.tokenizer.think_close, tiny.tokenizer.id(text)

    def push(ids, logits):
        logits[close if thinking and close not in ids[begin:] else newlines] = 1e6

    begin = len(tiny.tokenizer.apply_chat_template(ASK, thinking=thinking))
    made = tiny.generate(ASK, json_schema=PERSON, thinking=thinking, seed=1,
                         logits_processor=push, **HOT)
    assert (made.tokens.count(newlines) * len(text), made.text[0]) == (2 if thinking else 0, "{")
    jsonschema.validate(made.parsed, PERSON)


# ---- Everywhere ----


def test_the_same_wherever_it_is_asked_for(tiny, made_by):
    options = {**HOT, "json_schema": PERSON, "thinking": 6}
    alone = [tiny.generate(ASK, seed=seed, **options) for seed in range(5, 8)]
    texts = [made.text for made in alone]
    assert len(set(texts)) == 3
    assert "".join(tiny.generate(ASK, seed=5, stream=True, **options)) == texts[0]
    stream = tiny.generate(ASK, seed=5, stream=True, **options)
    while not stream.done:
        stream.poll(0.001)
    assert stream.result().parsed == alone[0].parsed
    several = tiny.generate([{"prompt": ASK, "seed": seed} for seed in range(5, 8)], **options)
    assert [made.text for made in several] == texts
    assert [made.text for made in tiny.generate(ASK, n=3, seed=5, **options)] == texts

    async def tasks():
        return await asyncio.gather(*(tiny.agenerate(ASK, seed=seed, **options)
                                      for seed in range(5, 8)))

    assert [made.parsed for made in asyncio.run(tasks())] == [made.parsed for made in alone]
    with tiny.session(512) as session:
        assert session.generate(ASK, seed=5, **options).text == texts[0]


def test_chats(tiny, made_by):
    with tiny.chat(json_schema=Person, context=2048, **HOT) as chat:
        for turn in range(3):
            made = chat.send("And who else?", seed=turn, thinking=4)
            assert isinstance(made.parsed, Person)
        assert chat.messages[-1]["content"] == made.text
        assert chat.send("So?", json_schema=None, choices=["no"], seed=1).text == "no"
        with pytest.raises(mm.ArgumentError, match="regex"):
            chat.send("Well?", regex="a(")
        assert len(chat.messages) == 8


# ---- Together with other options ----


def test_own_masks(tiny, made_by):
    """Both count; where they leave nothing, a sentence says so, and the stream can go on."""
    words = (tiny.config.vocab_size + 31) // 32
    masks = [np.full(words, 0xffffffff, np.uint32), np.zeros(words, np.uint32)]
    for char in b"01234":
        token = tiny.tokenizer.id(bytes([char]))
        masks[0][token >> 5] &= np.uint32(~(1 << (token & 31)) & 0xffffffff)
    options = {**HOT, "json_schema": {"type": "integer", "minimum": 0, "maximum": 99}}
    with pytest.raises(mm.ArgumentError, match="mask"):
        tiny.generate("x", mask=masks[1], **options)
    turns = iter([1, 0])
    stream = tiny.generate("x", mask=lambda ids: masks[next(turns, 0)], stream=True, seed=4,
                           **options)
    with pytest.raises(mm.ArgumentError, match="mask"):
        stream.result()
    made = stream.result()
    assert made.finish_reason == "stop" and re.fullmatch("[5-9]+", made.text)


def test_together_with_what_looks_at_logits(tiny, made_by):
    options = {**HOT, "json_schema": PERSON, "thinking": False, "seed": 8}
    plain, seen = tiny.generate(ASK, **options), []
    made = tiny.generate(ASK, top_logprobs=2, logits_processor=lambda ids, logits: None,
                         hooks=[("final_norm", lambda tensor, tap: seen.append(1))],
                         stop=["no such text"], **options)
    assert made.tokens == plain.tokens and seen
    assert [one.id for one in made.logprobs] == made.tokens


def test_a_call_in_place_of_the_answer(tiny, made_by):
    call = tiny.tokenizer.id("<minimax:tool_call>")
    options = {**HOT, "json_schema": PERSON, "tools": TOOLS, "seed": 1}
    assert tiny.generate(ASK, thinking=3, **options).parsed
    for thinking in (3, False):
        made = tiny.generate(ASK, thinking=thinking, bias={call: 99},
                             **{**options, "max_new_tokens": 9})
        assert made.tokens.count(call) and made.parsed is None
        forbidden = tiny.generate(ASK, thinking=thinking, bias={call: 99}, tool_choice="none",
                                  **options)
        jsonschema.validate(forbidden.parsed, PERSON)
        wanted = tiny.generate(ASK, thinking=thinking, tool_choice="now",
                               **{**options, "max_new_tokens": 40})
        assert wanted.calls[0].name == "now" and wanted.parsed is None


@pytest.mark.parametrize("thinking, text", [(True, "\n\n\n"), (False, "\n")])
def test_the_newlines_of_a_call(tiny, made_by, thinking, text):
    """One more than an answer's, and then nothing else may come."""
    close, newlines = tiny.tokenizer.think_close, tiny.tokenizer.id(text)
    call = tiny.tokenizer.id("<minimax:tool_call>")
    script = ([close] if thinking else []) + [newlines]

    def push(ids, logits):
        if len(ids) - begin < len(script):
            logits[script[len(ids) - begin]] = 1e6

    begin = len(tiny.tokenizer.apply_chat_template(ASK, thinking=thinking, tools=TOOLS))
    made = tiny.generate(ASK, json_schema=PERSON, thinking=thinking, tools=TOOLS, seed=1,
                         logits_processor=push, **{**HOT, "max_new_tokens": 9})
    assert made.tokens[:len(script) + 1] == [*script, call]


def test_an_interrupt_between_two_lines(tiny, made_by, monkeypatch):
    options = {**HOT, "json_schema": PERSON, "thinking": 4, "seed": 6}
    plain = tiny.generate(ASK, **options)
    for kind in (grammar._Automaton, grammar._Guided):
        real = kind._push
        hurt = iter([False] * 6 + [True, False, False, True])

        def push(self, token, real=real, hurt=hurt):
            real(self, token)
            if next(hurt, False):
                raise KeyboardInterrupt

        monkeypatch.setattr(kind, "_push", push)
    stream, interrupts = tiny.generate(ASK, stream=True, **options), 0
    while not stream.done:
        try:
            stream.poll(1)
        except KeyboardInterrupt:
            interrupts += 1
    assert interrupts == 2 and stream.result().tokens == plain.tokens


# ---- What is refused, before anything is fed ----


@pytest.mark.parametrize("options, kind, said", [
    ({"json_schema": {"type": "object", "requierd": ["a"]}}, mm.UnsupportedError, "/requierd"),
    ({"json_schema": {"properties": {"a": {"items": {"uniqueItems": True}}}}}, mm.UnsupportedError,
     "uniqueItems"),
    ({"json_schema": {"$ref": "#/nowhere"}}, mm.Error, "nowhere"),
    ({"json_schema": "{"}, mm.ArgumentError, "json_schema"),
    ({"json_schema": "[1]"}, mm.ArgumentError, "object"),
    ({"json_schema": 5}, TypeError, "int"),
    ({"json_schema": {"enum": {1}}}, TypeError, "set"),
    ({"json_schema": int}, TypeError, "type"),
    ({"regex": "a(b"}, mm.ArgumentError, "regex"),
    ({"regex": r"(?=x)"}, mm.UnsupportedError, "look"),
    ({"regex": 5}, TypeError, "regex"),
    ({"choices": []}, mm.ArgumentError, "choices"),
    ({"choices": "yes"}, TypeError, "choices"),
    ({"choices": ["a", 5]}, TypeError, "int"),
    ({"grammar": "start: nothing"}, mm.ArgumentError, "nothing"),
    ({"grammar": 5}, TypeError, "grammar"),
    ({"regex": "a", "choices": ["b"]}, mm.ArgumentError, "both"),
])
def test_refused(tiny, options, kind, said):
    with tiny.session(64) as session:
        with pytest.raises(kind, match=said):
            session.generate("x", **options)
        assert session.length == 0
    with pytest.raises(kind, match=said):
        tiny.chat(**options)


def test_without_a_tokenizer(blank):
    with pytest.raises(mm.UnsupportedError, match="tokenizer"):
        blank.generate([1], choices=["a"])


def test_without_llguidance(tiny, monkeypatch):
    """The library knows choices and regular expressions; what it lacks is named."""
    monkeypatch.setattr(tiny, "_made_grammars", None)
    monkeypatch.setitem(sys.modules, "llguidance", None)
    assert tiny.generate("x", choices=["a"]).text == "a"
    with pytest.raises(mm.UnsupportedError, match=r"(?s)maxProperties.*minimax2\[grammar\]"):
        tiny.generate("x", json_schema=BEYOND)
    with pytest.raises(mm.UnsupportedError, match=r"minimax2\[grammar\]"):
        tiny.generate("x", grammar='start: "a"')


def test_what_is_compiled_once(tiny, monkeypatch):
    compiled = []
    real = grammar.Grammars._compile
    monkeypatch.setattr(tiny, "_made_grammars", None)
    monkeypatch.setattr(grammar.Grammars, "_compile", lambda self, kind, text: (
        compiled.append(kind), real(self, kind, text))[1])
    tiny.generate(["a", "b"], json_schema=BEYOND, **HOT)
    tiny.generate("c", json_schema=BEYOND, n=3, **HOT)
    assert compiled == ["json_schema"]


@pytest.mark.parametrize("option, error, sentence", [
    ({"choices": []}, mm.ArgumentError, "choices are empty"),
    ({"json_schema": {"oneOf": [{"type": ["null", "integer"]}, {"type": "number"}]}},
     mm.UnsupportedError, "oneOf"),
    ({"json_schema": {"$ref": "#"}}, mm.UnsupportedError, "leads only to itself$"),
    ({"json_schema": {"type": "integer", "minimum": 10**30}}, mm.Error, "json_schema"),
])
def test_refusals_are_one_sentence(tiny, option, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        tiny.generate("x", max_new_tokens=1, **option)
    assert "\n" not in str(caught.value)
