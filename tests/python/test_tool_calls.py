"""Calls of tools: what is rendered is read back, wherever it is cut; streams, chats, budgets."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import minimax2 as mm
import pytest
from minimax2 import _native_text

ROUNDS = int(os.environ.get("MINIMAX2_CALLS", "400"))
TOOLS = [
    {"type": "function", "function": {
        "name": "get_weather", "description": "The weather at a place.",
        "parameters": {"type": "object", "properties": {
            "city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}}},
    {"type": "function", "function": {"name": "now", "parameters": {}}}]
CALL = ('<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Köln "x"'
        '</parameter>\n<parameter name="days">3</parameter>\n</invoke>\n</minimax:tool_call>')
ASK = [{"role": "user", "content": "How is the weather?"}]


def only(vocab_size, token):
    """A mask that allows one token."""
    mask = [0] * ((vocab_size + 31) // 32)
    mask[token // 32] = 1 << token % 32
    return memoryview(bytearray(b"".join(word.to_bytes(4, "little") for word in mask))).cast("I")


def scripted(model, text):
    """Options that make a model write a text; and its tokens."""
    script = model.tokenizer.encode(text, special=True)
    vocab_size = model.config.vocab_size
    return {"mask": lambda done: only(vocab_size, script[len(done)]), "seed": 1}, script


# ---- Rendered, then read back ----


WORDS = ["a", "Köln", " ", "\n", "\"", "\\", "'", "{", "}", "<", ">", "</", "&lt;", "日本", "🙂",
         "\x01", "\t", "null", "true", "5", "<think>", "</think>", "<parameter name=\"x\">",
         "</parameter>", "</invoke>", "<invoke name=\"y\">", "</minimax:tool_call>",
         "<minimax:tool_call>"]


def text(rng, most=5):
    """Words and odd pieces. Values are not escaped: a tag that ends one may stand inside of it,
    but not where another tag follows."""
    while True:
        made = "".join(rng.choices(WORDS, k=rng.randint(0, most)))
        if not re.search(r"</(parameter|invoke|minimax:tool_call)>\s*(<|$)", made):
            return made


def json_value(rng, depth=0):
    """Anything that JSON has."""
    kind = rng.randrange(7 if depth < 3 else 5)
    if kind < 2:
        return "".join(rng.choices(WORDS[:20], k=rng.randrange(4)))
    if kind < 5:
        return rng.choice([True, False, None, 0, -7, 2**70, 0.5, -1e-9, 1e22])
    if kind == 5:
        return [json_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {f"k{i} {rng.choice(WORDS[:9])}": json_value(rng, depth + 1)
            for i in range(rng.randrange(4))}


def parameter(rng):
    """A schema and a value that it allows, which the format can carry."""
    kind = rng.randrange(9)
    if kind < 3:
        return rng.choice([{"type": "string"}, {}, {"enum": ["x", "y"]}]), text(rng)
    if kind == 3:
        return {"type": ["string", "null"]}, rng.choice([None, text(rng) + "!"])
    if kind == 4:
        return {"type": "integer"}, rng.choice([0, -5, 2**80])
    if kind == 5:
        number = {"type": "number"}
        return (rng.choice([number, {"anyOf": [number, {"type": "null"}]}]),
                rng.choice([0.5, -3, 1e300, 2.5e-8]))
    if kind == 6:
        return {"type": "boolean"}, rng.random() < 0.5
    if kind == 7:
        return {"type": "array", "items": {}}, [json_value(rng) for _ in range(rng.randrange(4))]
    return {"anyOf": [{"$ref": "#/$defs/o"}, {"type": "null"}]}, rng.choice(
        [None, {f"k{i}": json_value(rng) for i in range(rng.randrange(4))}])


def turn(rng):
    """Tools, and an assistant's message that calls some of them."""
    tools, calls = [], []
    for i in range(rng.randint(1, 3)):
        made = {f"{rng.choice(['a', 'é', 'x y', 'q>'])}{k}": parameter(rng)
                for k in range(rng.randrange(4))}
        tools.append({"type": "function", "function": {"name": f"f{i}", "parameters": {
            "type": "object", "$defs": {"o": {"type": "object"}},
            "properties": {name: schema for name, (schema, _) in made.items()}}}})
        calls.append({"function": {"name": f"f{i}", "arguments": {
            name: value for name, (_, value) in made.items()}}})
    content = rng.choice(["", "A", "A\n\n", "ä 1 < 2\nb", "🙂"])
    thinking = rng.choice(["", "R", "R\n\nS <minimax:tool_call> x", " r "])
    return tools, {"role": "assistant", "content": content, "thinking": thinking,
                   "tool_calls": calls}


def written(tokenizer, tools, message):
    """What the model would have written to make that message: ids, without the end."""
    start = tokenizer.apply_chat_template(ASK, tools=tools)
    whole = tokenizer.render([*ASK, message], False, tools=tools)
    head = tokenizer.render(ASK, False, tools=tools) + "]~b]ai\n"
    assert whole.startswith(head) and whole.endswith("[e~[\n")
    answer = whole[len(head):-len("[e~[\n")].removeprefix("<think>\n")
    return start, answer if message["thinking"] else "\n</think>\n\n" + answer


def read(tokenizer, tools, ids):
    """A reply of these ids, ended by the caller; each step is checked to add only."""
    reply = _native_text.reply_new(tokenizer._c, _native_text.START_THINKING, 2**31 - 1, [], [],
                                   _native_text.json_text(tools, "tools"))
    before = ""
    seen = 0
    for token in ids:
        piece = _native_text.reply_push(reply, token)
        if piece.calls:
            if piece.calls > seen:
                before, seen = "", piece.calls
            now = _native_text.reply_call(reply, piece.calls - 1).arguments
            assert now.startswith(before)
            before = now
    _native_text.reply_end(reply, _native_text.END_CANCELLED)
    piece = _native_text.reply_all(reply)
    calls = [_native_text.reply_call(reply, i) for i in range(piece.calls)]
    assert not calls or calls[-1].arguments.startswith(before)
    return piece, calls


def test_what_is_rendered_is_read_back(tiny):
    """Content, thinking, names and typed values; by the tokenizer's tokens and by single bytes."""
    rng = random.Random(3)
    tokenizer = tiny.tokenizer
    letters = {bytes([i]): tokenizer.id(bytes([i])) for i in range(256)}
    for _ in range(ROUNDS):
        tools, message = turn(rng)
        _, answer = written(tokenizer, tools, message)
        for ids in (tokenizer.encode(answer, special=True),
                    [letters[bytes([byte])] for byte in answer.encode()]):
            piece, calls = read(tokenizer, tools, ids)
            assert piece.text == message["content"], answer
            assert piece.thinking == message["thinking"].strip("\n"), answer
            assert [call.name for call in calls] == [
                call["function"]["name"] for call in message["tool_calls"]], answer
            for call, wanted in zip(calls, message["tool_calls"]):
                assert call.state == _native_text.CALL_COMPLETE and call.known
                made, given = json.loads(call.arguments), wanted["function"]["arguments"]
                assert made == given and list(made) == list(given), answer
                assert list(map(type, made.values())) == list(map(type, given.values())), answer


def test_cut_anywhere(tiny):
    """Every call's arguments are JSON, and the text before the cut stays."""
    rng = random.Random(4)
    tokenizer = tiny.tokenizer
    for _ in range(max(10, ROUNDS // 20)):
        tools, message = turn(rng)
        _, answer = written(tokenizer, tools, message)
        ids = tokenizer.encode(answer, special=True)
        for cut in range(len(ids)):
            piece, calls = read(tokenizer, tools, ids[:cut])
            for call, wanted in zip(calls, message["tool_calls"]):
                made, given = json.loads(call.arguments), wanted["function"]["arguments"]
                assert call.name == wanted["function"]["name"]
                for name in list(made)[:-1] if call.state == _native_text.CALL_CUT else made:
                    assert made[name] == given[name]


def test_the_page_of_parsers():
    """It says what this parser reads."""
    root = Path(__file__).resolve().parents[2]
    vendor = Path(os.environ.get("MINIMAX2_VENDOR_DATA", root.parent / "shared/data/minimax-m2"))
    if not (vendor / "templates/parser_matrix.json").exists():
        pytest.skip(f"no parser_matrix.json in {vendor}/templates (set MINIMAX2_VENDOR_DATA)")
    done = subprocess.run([sys.executable, root / "docs" / "gen_parsers.py", "--check"],
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# ---- With a model ----


def test_generate_with_tools(tiny):
    """The tools are declared; calls are read, typed and kept apart from the text."""
    script = f"hm\n</think>\n\nLet me look.\n{CALL}[e~["
    options, ids = scripted(tiny, script)
    made = tiny.generate(ASK, tools=TOOLS, **options)
    assert (made.thinking, made.text, made.finish_reason) == ("hm", "Let me look.", "tool_calls")
    [call] = made.calls
    assert call.name == "get_weather" and call.known and call.state == "complete"
    assert call.arguments == {"city": 'Köln "x"', "days": 3} == json.loads(call.json)
    assert call.at == len("Let me look.") and made.tokens == ids and made.reason == ""
    assert made.message()["tool_calls"] == [call.message()]
    plain = tiny.generate(ASK, **options)
    assert plain.calls[0].known and plain.calls[0].arguments["days"] == "3"
    other = tiny.generate(ASK, tools=TOOLS[1:], **options)
    assert not other.calls[0].known
    assert tiny.generate(ASK, tools=json.dumps(TOOLS), **options).calls == made.calls


def test_pieces_in_order(tiny):
    """Thinking, text and calls as they come; joined they are the whole."""
    script = f"hm\n</think>\n\nä\n{CALL}mid{CALL} end[e~["
    options, _ = scripted(tiny, script)
    with tiny.session() as session:
        stream = session.generate(ASK, tools=TOOLS, stream=True, **options)
        pieces = list(stream.pieces())
        assert stream.done and list(stream.pieces())[-1] == mm.Piece("text", " end", None)
    kinds = [piece.kind for i, piece in enumerate(pieces)
             if not i or piece.kind != pieces[i - 1].kind]
    one = ["call", "arguments", "call_end"]
    assert kinds == ["thinking", "text", *one, "text", *one, "text"]
    assert "".join(p.text for p in pieces if p.kind == "thinking") == "hm"
    assert "".join(p.text for p in pieces if p.kind == "text") == "ämid end" == stream.text
    for index in (0, 1):
        fragments = [p.text for p in pieces if p.kind == "arguments" and p.call == index]
        assert len(fragments) > 4 and "".join(fragments) == stream.calls[index].json


def test_a_chat_calls_tools(tiny):
    """Results go back as messages; the timeline is what the whole conversation renders."""
    with tiny.chat("Be brief.", tools=TOOLS) as chat:
        first = f"hm\n</think>\n\nLet me look.\n{CALL}[e~["
        options, script = scripted(tiny, first)
        made = chat.send("How is the weather?", **options)
        [call] = made.calls
        result = {"role": "tool", "content": "sunny"}
        options, second = scripted(tiny, "so\n</think>\n\nSunny.[e~[")
        assert chat.send(result, **options).text == "Sunny."
        assert [m["role"] for m in chat.messages] == ["system", "user", "assistant", "tool",
                                                      "assistant"]
        whole = chat.model.tokenizer.render(chat.messages, False, tools=TOOLS)
        fed = chat.model.tokenizer.decode(chat.session.tokens, special=True)
        assert fed + "\n" == whole
        with pytest.raises(mm.ArgumentError, match="beginning"):
            chat.send("x", tools=TOOLS[:1])
        assert len(chat.messages) == 5
        options, _ = scripted(tiny, "</think>\n\nYes.[e~[")
        assert chat.send([{"role": "user", "content": "Sure?"}], **options).text == "Yes."
        with pytest.raises(mm.ArgumentError, match="^message 0 is of a tool, but the assistant has "
                                                   "called none before it$"):
            chat.send(result)  # of a call that was answered before
        assert len(chat.messages) == 7
    with tiny.chat(tools=TOOLS) as chat:  # in what was restored, too
        options, _ = scripted(tiny, first)
        made = chat.send("How is the weather?", **options)
        again = tiny.chat(tools=TOOLS)
        again.session = chat.session.fork()
        assert again.send(result, max_new_tokens=1).finish_reason == "length"
    with tiny.chat() as chat:
        options, _ = scripted(tiny, f"\n{CALL}[e~[")  # a call that ends the thinking
        assert chat.send("x", tools=TOOLS, **options).calls[0].known


@pytest.mark.parametrize("budget", [1, 3, 7])
def test_a_budget_of_thinking(tiny, budget):
    """The block is closed as the format does it, and the answer follows."""
    tokenizer = tiny.tokenizer
    closing = [*tokenizer.encode("\n"), tokenizer.think_close, *tokenizer.encode("\n\n")]
    word = tokenizer.encode(" we")
    assert len(word) == 1
    options = {"mask": lambda done: only(tiny.config.vocab_size, word[0]), "top_logprobs": 1}
    made = tiny.generate(ASK, thinking=budget, max_new_tokens=budget + len(closing) + 2, **options)
    assert made.tokens == word * budget + closing + word * 2
    assert made.thinking == " we" * budget and made.text == " we we"
    assert len(made.logprobs) == len(made.tokens)
    short = tiny.generate(ASK, thinking=budget, max_new_tokens=budget + 1, **options)
    assert short.text == "" and short.finish_reason == "length"
    plain = tiny.generate("<think>", thinking=budget, max_new_tokens=budget + len(closing) + 1,
                          **options)
    assert plain.text == " we"
    with tiny.chat(thinking=budget) as chat:
        assert chat.send("x", max_new_tokens=budget + len(closing) + 1, **options).text == " we"


def test_budgets_and_switches_that_are_refused(tiny):
    """Zero is as False; others are named."""
    off = tiny.generate(ASK, thinking=False, max_new_tokens=3, seed=1, temperature=0)
    assert tiny.generate(ASK, thinking=0, max_new_tokens=3, seed=1, temperature=0).tokens \
        == off.tokens
    with pytest.raises(mm.ArgumentError, match="thinking"):
        tiny.generate(ASK, thinking=-1)
    with pytest.raises(TypeError, match="thinking"):
        tiny.generate(ASK, thinking="no")
    with pytest.raises(mm.ArgumentError, match="prompts of messages"):
        tiny.generate("x", tools=TOOLS)
    with pytest.raises(mm.ArgumentError, match="has no name"):
        tiny.generate(ASK, tools=[{"type": "function", "function": {}}])
    with pytest.raises(TypeError, match="tools"):
        tiny.generate(ASK, tools=[print])  # it takes arguments by place


def test_keep_thinking(tiny):
    """Of all turns of a prompt."""
    turns = [*ASK, {"role": "assistant", "content": "A", "thinking": "R"}, *ASK]
    with tiny.session() as session:
        session.generate(turns, keep_thinking=True, max_new_tokens=0)
        assert "<think>\nR\n</think>" in tiny.tokenizer.decode(session.tokens, special=True)


def test_what_is_no_call_says_why(tiny):
    """The text stays, with a reason."""
    options, _ = scripted(tiny, "</think>\n\n<minimax:tool_call>no[e~[")
    made = tiny.generate(ASK, tools=TOOLS, **options)
    assert made.text == "<minimax:tool_call>no" and not made.calls and "invoke" in made.reason
