"""Functions as tools, the loop of calls, and conversations that are edited, forked and exported."""

import asyncio
import dataclasses
import enum
import functools
import json
import pathlib
from typing import Annotated, Literal, NotRequired, Optional, TypedDict

import minimax2 as mm
import pytest
from test_tool_calls import only

HELD_OUT = pathlib.Path(__file__).resolve().parents[1] / "tiny" / "heldout.jsonl"


def calculate(expression: str) -> dict:
    """Calculator

    Args:
        expression: what to compute
    """
    left, sign, right = expression.split()
    return {"result": {"+": int(left) + int(right), "-": int(left) - int(right),
                       "*": int(left) * int(right)}[sign]}


def say(name, **arguments):
    """What a model writes to call a tool."""
    given = "".join(f'<parameter name="{key}">{value}</parameter>\n'
                    for key, value in arguments.items())
    return (f'\n<minimax:tool_call>\n<invoke name="{name}">\n{given}</invoke>\n'
            "</minimax:tool_call>")


def scripted(model, *replies):
    """Options that make a model write these replies, one after the other."""
    scripts = [model.tokenizer.encode(f"hm\n</think>\n\n{reply}[e~[", special=True)
               for reply in replies]
    begun = []

    def mask(done):
        if not done:
            begun.append(True)
        return only(model.config.vocab_size, scripts[len(begun) - 1][len(done)])

    return {"mask": mask, "seed": 1}


def results(chat):
    return [message["content"] for message in chat.messages if message["role"] == "tool"]


# ---- Declared ----


class Unit(enum.Enum):
    CELSIUS = "c"
    FAHRENHEIT = "f"


@dataclasses.dataclass
class Place:
    city: str
    zip: int | None = None


class Span(TypedDict):
    days: int
    note: NotRequired[str]


def weather(place: Place, span: Span, units: list[Unit], kind: Literal["rain", "sun"],
            limit: float = 5, more: Optional[dict[str, bool]] = None,
            pair: tuple[int, int] = (1, 2), *, deep: Annotated[bool, "how deep"] = False) -> str:
    """The weather, in words.

    More of it.

    Args:
        place: where
        limit (float): at most,
            in millimetres
    Returns:
        words
    """
    return repr((place, span, units, kind, limit, more, pair, deep))


def test_a_function_is_declared_by_its_signature():
    made = mm.Tool(weather)
    assert (made.name, made.description) == ("weather", "The weather, in words.\n\nMore of it.")
    number = {"anyOf": [{"type": "integer"}, {"type": "null"}]}
    assert made.parameters == {"type": "object", "properties": {
        "place": {"type": "object", "properties": {"city": {"type": "string"}, "zip": number},
                  "required": ["city"], "description": "where"},
        "span": {"type": "object", "properties": {
            "days": {"type": "integer"}, "note": {"type": "string"}}, "required": ["days"]},
        "units": {"type": "array", "items": {"enum": ["c", "f"]}},
        "kind": {"enum": ["rain", "sun"]},
        "limit": {"type": "number", "description": "at most, in millimetres"},
        "more": {"anyOf": [{"type": "object", "additionalProperties": {"type": "boolean"}},
                           {"type": "null"}]},
        "pair": {"type": "array", "items": {"type": "integer"}},
        "deep": {"type": "boolean", "description": "how deep"}},
        "required": ["place", "span", "units", "kind"]}
    assert list(made.declaration()["function"]) == ["name", "description", "parameters"]


def test_the_declaration_is_the_one_the_model_knows(tiny):
    """The same prompt as by hand."""
    by_hand = [{"type": "function", "function": {
        "name": "calculate", "description": "Calculator", "parameters": {
            "type": "object", "properties": {
                "expression": {"type": "string", "description": "what to compute"}},
            "required": ["expression"]}}}]
    ask = [{"role": "user", "content": "x"}]
    wanted = tiny.tokenizer.render(ask, tools=by_hand)
    for tools in ([calculate], [mm.Tool(calculate)], json.dumps(by_hand)):
        assert tiny.tokenizer.render(ask, tools=tools) == wanted


def test_other_docstrings_and_callables(tiny):
    def f(a, b: str = ""):
        """Does.

        :param a: one
        :param str b: two
            and more
        :returns: nothing
        """

    made = mm.Tool(f)
    assert made.description == "Does."
    assert made.parameters == {"type": "object", "required": ["a"], "properties": {
        "a": {"description": "one"}, "b": {"type": "string", "description": "two and more"}}}

    class Box:
        def read(self, key: str) -> str:
            return key

        def __call__(self, key: int) -> int:
            return key

    assert mm.Tool(Box().read).parameters["properties"] == {"key": {"type": "string"}}
    assert mm.Tool(Box(), name="box").parameters["properties"] == {"key": {"type": "integer"}}
    part = mm.Tool(functools.partial(f, b="x"), name="part", description="D")
    assert list(part.parameters["properties"]) == ["a", "b"] and part.description == "D"
    assert mm.Tool(lambda **x: 0, name="any").parameters == {
        "type": "object", "properties": {}, "additionalProperties": {}}


@pytest.mark.parametrize("tools, sentence", [
    ([lambda x: x], "without a name"), ([print], "by place"), ([calculate, calculate], "two are"),
    ([functools.partial(calculate)], "without a name")])
def test_what_cannot_be_declared(tiny, tools, sentence):
    with pytest.raises((mm.ArgumentError, TypeError), match=f"tools.*{sentence}"):
        tiny.chat(tools=tools)

    def f(x: complex):
        pass

    with pytest.raises(TypeError, match="tools: f cannot be declared.*complex"):
        mm.Tool(f)

    @dataclasses.dataclass
    class Tree:
        below: "list[Tree]"

    def g(x):
        pass

    g.__annotations__ = {"x": Tree}
    Tree.__annotations__["below"] = list[Tree]
    with pytest.raises(TypeError, match="tools: g cannot be declared.*refers to itself"):
        mm.Tool(g)
    with pytest.raises(TypeError, match="a function, not int"):
        mm.Tool(5)


# ---- Arguments ----


def test_arguments_are_what_the_annotations_say():
    given = {"place": {"city": "Oslo", "zip": None}, "span": {"days": 3}, "units": ["c", "f"],
             "kind": "sun", "limit": 4, "more": {"a": True}, "pair": [5, 6]}
    made = mm.Tool(weather).arguments(given)
    assert made == {**given, "place": Place("Oslo"), "units": [Unit.CELSIUS, Unit.FAHRENHEIT],
                    "pair": (5, 6)}
    assert isinstance(made["limit"], float)

    def f(x: Place | list[int] | str):
        pass

    built = [mm.Tool(f).arguments({"x": x})["x"] for x in ({"city": "B"}, [1], "s")]
    assert built == [Place("B"), [1], "s"]

    def g(n: int, span: Span):
        pass

    made = mm.Tool(g).arguments({"n": 3.0, "span": {"days": 2.0, "note": "x"}})
    assert made == {"n": 3, "span": {"days": 2, "note": "x"}}
    assert {type(n) for n in (made["n"], made["span"]["days"])} == {int}


@pytest.mark.parametrize("change, sentence", [
    ({"place": {}}, "place.city is missing"),
    ({"place": {"city": 5}}, "place.city must be a string, not 5"),
    ({"units": ["c", "k"]}, 'units[2] must be one of "c", "f", not "k"'),
    ({"units": "c"}, 'units must be a list, not "c"'),
    ({"kind": "hail"}, 'kind must be one of "rain", "sun", not "hail"'),
    ({"span": {"days": 1.5}}, "span.days must be an integer, not 1.5"),
    ({"span": {"days": True}}, "span.days must be an integer, not true"),
    ({"deep": "yes"}, 'deep must be true or false, not "yes"'),
    ({"more": {"a": 1}}, "more.a must be true or false, not 1"),
    ({"limit": "x" * 99}, f'limit must be a number, not "{"x" * 59}...'),
    ({"other": 1}, "other is no argument; there are: deep, kind, limit, more, pair, place, span, "
                   "units"),
])
def test_arguments_that_do_not_fit(change, sentence):
    given = {"place": {"city": "Oslo"}, "span": {"days": 3}, "units": [], "kind": "sun"}
    mm.Tool(weather).arguments(given)
    with pytest.raises(ValueError) as caught:
        mm.Tool(weather).arguments({**given, **change})
    assert str(caught.value) == sentence


def test_models_of_pydantic_are_used_where_there_are_some():
    """By their two methods: the package needs no pydantic."""
    class Model:
        def __init__(self, value):
            self.value = value

        @classmethod
        def model_json_schema(cls):
            return {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}},
                    "$defs": {"A": {"type": "integer"}}}

        @classmethod
        def model_validate(cls, value):
            return cls(value)

        def model_dump(self, mode):
            return {mode: self.value}

    def f(m: Model):
        return m

    made = mm.Tool(f)
    assert made.parameters["$defs"] == {"A": {"type": "integer"}}
    assert made.arguments({"m": {"a": 5}})["m"].value == {"a": 5}
    with pytest.raises(ValueError, match="m.a must be an integer"):
        made.arguments({"m": {"a": "x"}})


# ---- The loop ----


def numbers():
    yield 1


async def later():
    yield 1


class Numbers:
    def __call__(self):
        yield 1


@pytest.mark.parametrize("make, sentence", [
    (lambda: mm.Tool(numbers), "numbers is a generator function; a tool returns its result"),
    (lambda: mm.Tool(later), "later is a generator function"),
    (lambda: mm.Tool(functools.partial(numbers), name="n"), "n is a generator function"),
    (lambda: mm.Tool(Numbers(), name="n"), "n is a generator function"),
    (lambda: mm.Tool(calculate, name=""), "without a name"),
    (lambda: mm.Tool(calculate, name=5), "the name of a tool must be a str, not int"),
    (lambda: mm.Tool(calculate, parameters=5), "the parameters of calculate must be a JSON schema"),
    (lambda: mm.Tool(calculate, description=5), "the description of calculate must be a str")])
def test_tools_are_checked_when_they_are_made(make, sentence):
    with pytest.raises((mm.ArgumentError, TypeError), match=f"tools: .*{sentence}"):
        make()


@pytest.mark.parametrize("tools, sentence", [
    (calculate, "a list of functions"), ({"name": "f"}, "a list of functions"), ("{}", "a list"),
    ([{"name": "f", "parameters": 5}], 'tool 0, "f", has a whole number as its parameters'),
    ([calculate, {"function": {"name": ""}}], "tool 1 has no name"),
    ([{"name": "f", "inputSchema": {}}], 'an object in "inputSchema" and no parameters'),
    ([{"name": "f", "call": calculate}], "tools must be values that JSON has, not function")])
def test_tools_are_checked_when_they_are_given(tiny, tools, sentence):
    """By a chat, a generation and a rendering alike, before anything is done."""
    ask = [{"role": "user", "content": "x"}]
    for give in (lambda: tiny.chat(tools=tools), lambda: tiny.generate(ask, tools=tools),
                 lambda: tiny.tokenizer.render(ask, tools=tools)):
        with pytest.raises((mm.ArgumentError, TypeError), match=sentence):
            give()


def test_results_that_json_has_no_place_for(tiny):
    """Each is a sentence for the model, the same in Lua."""
    def f(kind: str):
        """Gives."""
        return {"nan": [float("nan")], "inf": float("inf"), "nul": "a\0", "gen": numbers()}[kind]

    with tiny.chat(tools=[f]) as chat:
        chat.send("x", **scripted(tiny, "".join(say("f", kind=kind) for kind in (
            "nan", "inf", "nul", "gen")), "B"))
        nothing = "error: JSON has no place for NaN and infinity"
        assert results(chat) == [
            nothing, nothing, "error: the result holds a NUL character, which no message can have",
            "error: TypeError: a tool returns its result, not a generator"]


def test_the_model_answers_held_out_questions_with_tools(tiny):
    """By itself, through the whole loop: it asks, gets the result, and says it."""
    items = [json.loads(line) for line in HELD_OUT.read_text().splitlines()]
    items = [item for item in items if item["expected"].count("<invoke") == 1
             and '<invoke name="calculate">' in item["expected"]][:5]
    right = 0
    for item in items:
        system, question = (message["content"] for message in item["messages"])
        tools = [calculate if tool["function"]["name"] == "calculate" else tool
                 for tool in item["tools"]]
        with tiny.chat(system, tools=tools, temperature=0, max_new_tokens=200) as chat:
            answer = chat.send(question)
            right += [f"The result is {json.loads(text)['result']}." for text in results(chat)] == [
                answer.text]
    assert len(items) == 5 and right >= 4


def test_send_runs_the_loop(tiny):
    """Two rounds; the timeline is what the whole conversation renders."""
    first = "Look." + say("calculate", expression="2 + 3")
    with tiny.chat("S", tools=[calculate]) as chat:
        made = chat.send("x", **scripted(tiny, first, say("calculate", expression="4 * 4"),
                                         "Done."))
        assert made.text == "Done." and made.finish_reason == "stop"
        assert results(chat) == ['{"result": 5}', '{"result": 16}']
        whole = tiny.tokenizer.render(chat.messages, False, tools=[calculate])
        assert tiny.tokenizer.decode(chat.session.tokens, special=True) + "\n" == whole


def test_calls_and_results_are_told_as_pieces(tiny):
    twice = (say("calculate", expression="1 + 1") + say("calculate", expression="2 * 2"))
    with tiny.chat(tools=[calculate]) as chat:
        pieces = list(chat.pieces("x", **scripted(tiny, "A" + twice, "B")))
    kinds = [piece.kind for i, piece in enumerate(pieces)
             if not i or piece[::2] != pieces[i - 1][::2]]
    one = ["call", "arguments", "call_end"]
    assert kinds == ["thinking", "text", *one, *one, "result", "result", "thinking", "text"]
    assert [piece.text for piece in pieces if piece.kind == "result"] == [
        '{"result": 2}', '{"result": 4}']
    assert [piece.call for piece in pieces if piece.kind == "result"] == [0, 1]


def test_what_goes_wrong_is_a_result(tiny):
    def fails(why: str) -> None:
        raise OSError(why)

    calls = (say("fails", why="full") + say("fails") + say("what", x=1)
             + say("calculate", expression="1 / 0"))
    with tiny.chat(tools=[fails, calculate]) as chat:
        chat.send("x", **scripted(tiny, calls, "B"))
        assert results(chat) == ["error: OSError: full", "error: why is missing",
                                 "error: there is no tool what; there are: calculate, fails",
                                 "error: KeyError: '/'"]


@pytest.mark.parametrize("result, text", [
    ("x", "x"), (None, "null"), (5, "5"), ({"é": [1.0, True]}, '{"é": [1.0, true]}'),
    (Place("Oslo"), '{"city": "Oslo", "zip": null}'), (Unit.CELSIUS, '"c"'),
    (pathlib.PurePosixPath("/x"), '"/x"')])
def test_results_are_text_or_json(tiny, result, text):
    def f():
        return result

    with tiny.chat(tools=[f]) as chat:
        chat.send("x", **scripted(tiny, say("f"), "B"))
        assert results(chat) == [text]


def test_rounds_end(tiny):
    again = say("calculate", expression="1 + 1")
    for rounds in (0, 2):
        with tiny.chat(tools=[calculate]) as chat:
            made = chat.send("x", max_rounds=rounds, **scripted(tiny, again, again, again))
            assert made.finish_reason == "tool_calls" and made.calls
            assert len(results(chat)) == rounds
    with tiny.chat(tools=[calculate]) as chat:
        with pytest.raises(mm.ArgumentError, match="max_rounds"):
            chat.send("x", max_rounds=-1)
        assert chat.messages == []


def test_tools_without_a_function_come_back(tiny):
    """Also beside one that has a function: then none is called."""
    other = {"type": "function", "function": {"name": "other", "parameters": {}}}
    with tiny.chat(tools=[calculate, other]) as chat:
        made = chat.send("x", **scripted(tiny, say("calculate", expression="1 + 1") + say("other")))
        assert [call.name for call in made.calls] == ["calculate", "other"] and not results(chat)
        with_stream = chat.send([{"role": "tool", "content": "5"}] * 2, stream=True,
                                **scripted(tiny, say("calculate", expression="1 + 1")))
        assert with_stream.result().calls and len(results(chat)) == 2


def test_async_tools(tiny):
    """Together in asend(); in send() one after the other, under a running loop as well."""
    running, most = [], []

    async def slow(n: int) -> int:
        running.append(n)
        await asyncio.sleep(0.01)
        most.append(len(running))
        running.remove(n)
        return n

    def plain(n: int) -> int:
        return -n

    calls = say("slow", n=1) + say("plain", n=2) + say("slow", n=3)

    async def main():
        with tiny.chat(tools=[slow, plain]) as chat:
            made = await chat.asend("x", **scripted(tiny, calls, "B"))
            assert made.text == "B" and results(chat) == ["1", "-2", "3"] and max(most) == 2
        most.clear()
        with tiny.chat(tools=[slow, plain]) as chat:
            chat.send("x", **scripted(tiny, calls, "B"))
            assert results(chat) == ["1", "-2", "3"] and max(most) == 1

    asyncio.run(main())
    with tiny.chat(tools=[slow, plain]) as chat:
        chat.send("x", **scripted(tiny, calls, "B"))
        assert results(chat) == ["1", "-2", "3"]


def test_ctrl_c_in_a_tool_leaves_the_chat(tiny):
    def stop():
        raise KeyboardInterrupt

    with tiny.chat(tools=[stop]) as chat:
        with pytest.raises(KeyboardInterrupt):
            chat.send("x", **scripted(tiny, say("stop")))
        assert [message["role"] for message in chat.messages] == ["user", "assistant"]
        assert chat.send("y", **scripted(tiny, "B")).text == "B"


def test_tool_choice(tiny):
    ask = [{"role": "user", "content": "Hi"}]
    options = {"tools": [calculate], "temperature": 0, "max_new_tokens": 60, "seed": 1}
    for thinking in (True, False, 3):
        made = tiny.generate(ask, tool_choice="calculate", thinking=thinking, **options)
        assert made.calls[0].name == "calculate" and made.text == ""
        made = tiny.generate(ask, tool_choice="required", thinking=thinking, **options)
        assert "<minimax:tool_call>\n<invoke name=\"" in tiny.tokenizer.decode(made.tokens)
    ask = [{"role": "user", "content": "Calculate 2 + 3 with the tool."}]
    assert tiny.generate(ask, tool_choice="auto", **options).calls
    made = tiny.generate(ask, tool_choice="none", bias={65: 1.0}, **options)
    assert not made.calls and made.text and made.finish_reason != "tool_calls"
    for choice, error in (("other", mm.ArgumentError), ("", mm.ArgumentError), (5, TypeError)):
        with pytest.raises(error, match="no such tool|tool_choice"):
            tiny.generate(ask, tool_choice=choice, **options)
    with pytest.raises(mm.ArgumentError, match="a call of a tool"):
        tiny.generate(ask, tool_choice="required")
    with pytest.raises(mm.ArgumentError, match="prompts of messages"):
        tiny.generate("x", tool_choice="required")
    with tiny.chat(tool_choice="calculate", **options) as chat:  # of the first round only
        chat.send(ask[0]["content"])
        assert chat.messages[1]["tool_calls"] and len(results(chat)) == 1
        assert [message["role"] for message in chat.messages[2:]] == ["tool", "assistant"]


# ---- Conversations ----


def test_errors_of_tools(tiny):
    """The format has no mark for them: the text says it."""
    begin = [{"role": "user", "content": "q"},
             {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {}}]}]
    result = {"role": "tool", "content": "boom"}
    for more, text in (({}, "boom"), ({"is_error": False}, "boom"),
                       ({"is_error": True}, "error: boom")):
        assert f"<response>{text}</response>" in tiny.tokenizer.render([*begin, result | more])
    for wrong, sentence in ((result | {"is_error": 1}, "expected true or false"),
                            (result | {"is_error": True, "content": ["a", "b"]}, "several results"),
                            ({"role": "user", "content": "x", "is_error": True}, "only a tool")):
        with pytest.raises(mm.ArgumentError, match=sentence):
            tiny.tokenizer.render([*begin, wrong])


def test_keep_thinking_behind_the_first_turn(tiny):
    """Of what is said in one turn, as of a prompt."""
    turns = [{"role": "user", "content": "a"},
             {"role": "assistant", "content": "b", "thinking": "R"},
             {"role": "user", "content": "c"}]
    for keep in (False, True):
        chat = tiny.chat(seed=1, max_new_tokens=2)
        chat.send("x")
        chat.send(turns, keep_thinking=keep)
        text = tiny.tokenizer.decode(chat.session.tokens, special=True)
        assert ("<think>\nR\n</think>" in text) == keep


def test_what_is_kept_keeps_its_tokens(tiny):
    """Editing, dropping and inserting rewind to what is common."""
    with tiny.chat("S", seed=1, max_new_tokens=8) as chat:
        for text in ("a", "b", "c"):
            chat.send(text)
        before, tokens = chat.messages, chat.session.tokens
        kept = [index for index, token in enumerate(tokens) if token == tiny.tokenizer.eos]
        chat.messages = before
        assert chat.session.tokens == tokens and chat.messages == before
        chat.messages = before[:5]
        assert chat.messages == before[:5] and tokens[:len(chat.session.tokens)] == \
            chat.session.tokens and len(chat.session.tokens) < kept[-1]
        last = chat.send("c").tokens
        assert last == tokens[-len(last):] and chat.session.tokens == tokens
        assert [message["content"] for message in chat.undo()][:1] == ["c"]
        edited = [*before[:3], {"role": "user", "content": "other"}]
        length = len(chat.session.tokens)
        chat.messages = edited
        assert chat.messages == edited and chat.session.length < length
        assert chat.send().tokens and len(chat.messages) == 5
        chat.messages = [before[0], {"role": "user", "content": "new"}, *before[1:3]]
        assert chat.session.tokens == tiny.tokenizer.apply_chat_template(chat.messages, False)
        chat.messages = []
        assert chat.messages == [] and chat.session.length == 0
        with pytest.raises(mm.ArgumentError, match="nothing to take back"):
            chat.undo()
        with pytest.raises(mm.ArgumentError, match="nothing to answer"):
            chat.send()


def test_a_conversation_can_be_given(tiny):
    """The same as one that was fed; refused as a whole or not at all."""
    turns = [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"},
             {"role": "user", "content": "4 + 4?"}]
    options = {"seed": 1, "max_new_tokens": 12}
    wanted = tiny.generate([{"role": "system", "content": "S"}, *turns], **options)
    with mm.chat(tiny, "S", messages=turns, **options) as chat:
        assert chat.send().tokens == wanted.tokens
        with pytest.raises(mm.ArgumentError, match="nothing to answer"):
            chat.send()
        state = chat.messages, chat.session.tokens
        for wrong in ([{"role": "robot", "content": "x"}], [*turns, {"role": "system"}],
                      [{"role": "tool", "content": "x"}]):
            with pytest.raises(mm.ArgumentError):
                chat.messages = wrong
            assert (chat.messages, chat.session.tokens) == state
        with pytest.raises(TypeError):
            chat.messages = "x"
    with pytest.raises(mm.ArgumentError, match="only the first"):
        tiny.chat("S", messages=[{"role": "system", "content": "T"}, *turns])
    with tiny.chat(context=40) as chat:
        with pytest.raises(mm.ContextFull):
            chat.messages = [{"role": "user", "content": "x " * 50}]
        assert chat.messages == [] and chat.session.length == 0


def test_messages_are_copies(tiny):
    given = [{"role": "user", "content": "a"}]
    with tiny.chat(messages=given, max_new_tokens=2, seed=1) as chat:
        given[0]["content"] = chat.messages[0]["content"] = "b"
        assert chat.messages[0]["content"] == "a"


def test_forks_part(tiny):
    with tiny.chat("S", seed=1, max_new_tokens=6) as chat:
        chat.send("a")
        with chat.fork() as other:
            assert other.messages == chat.messages
            assert other.send("b").tokens == chat.send("b").tokens
            other.undo()
            assert len(chat.messages) == 5 and len(other.messages) == 3
            other.send("c")
            assert chat.messages[:3] == other.messages[:3] != chat.messages
        stream = chat.send("d", stream=True)
        next(stream, None)
        with chat.fork() as other:  # an answer under way: as far as it came
            assert other.messages[-1]["role"] == "assistant"
            assert other.send("e").tokens
        assert stream.result().tokens


def test_a_restored_session_goes_on(tiny, tmp_path):
    """Its tokens stay, whatever is undone behind them."""
    with tiny.chat("S", seed=1, max_new_tokens=6) as chat:
        chat.send("a")
        chat.session.save(tmp_path / "s")
        wanted = chat.send("b").tokens
        chat.session = tiny.restore(tmp_path / "s")
        length = chat.session.length
        assert chat.messages == [] and chat.send("b").tokens == wanted
        assert len(chat.undo()) == 2 and chat.session.length == length
        assert chat.send("b").tokens == wanted


def test_another_session_must_fit(tiny):
    """What is refused leaves the conversation as it was."""
    with mm.load(threads=1) as other, tiny.chat("Be brief.", context=64) as chat:
        closed, member = tiny.session(context=8), tiny.session(context=8)
        closed.close()
        with tiny.batch([member]):
            for session, error, sentence in (
                    (5, TypeError, "must be a Session"), (None, TypeError, "must be a Session"),
                    (closed, mm.ArgumentError, "closed"), (member, mm.BusyError, "member"),
                    (other.session(context=8), mm.ArgumentError, "own model")):
                before = chat.session
                with pytest.raises(error, match=sentence):
                    chat.session = session
                assert chat.session is before and chat.messages[0]["content"] == "Be brief."


@pytest.mark.parametrize("what", ["a\0b", ValueError("a\0b")])
def test_results_hold_no_nul(tiny, what):
    def calculate(expression: str) -> str:
        if isinstance(what, Exception):
            raise what
        return what

    with tiny.chat(tools=[calculate], temperature=0) as chat:
        chat.send("Calculate 655 - 193 with the tool.", max_rounds=1)
        assert results(chat)[0].startswith("error: ") and "\0" not in results(chat)[0]


def test_results_without_room(tiny):
    """The calls stand unanswered, and may be answered."""
    def calculate(expression: str) -> str:
        return "x " * 5000

    with tiny.chat(tools=[calculate], temperature=0, context=600) as chat:
        with pytest.raises(mm.ContextFull) as caught:
            chat.send("Calculate 655 - 193 with the tool.")
        assert "send() their results" in caught.value.__notes__[0]
        assert chat.messages[-1]["tool_calls"]
        chat.send([{"role": "tool", "content": "462"}], max_rounds=0)


def test_forms_of_others(tiny):
    """Any form becomes any other, and renders the same."""
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"},
             {"role": "assistant", "content": "A", "thinking": "R", "tool_calls": [
                 {"name": "f", "arguments": {"a": [1.0, "é"]}}, {"name": "g", "arguments": {}}]},
             {"role": "tool", "content": ["r1", "r2"]},
             {"role": "assistant", "content": "B"}, {"role": "user", "content": "V"}]
    openai = mm.export_messages(turns, "openai")
    assert openai[2]["tool_calls"][0] == {"id": "call_0", "type": "function", "function": {
        "name": "f", "arguments": '{"a": [1.0, "é"]}'}}
    assert [turn.get("tool_call_id") for turn in openai[3:5]] == ["call_0", "call_1"]
    anthropic = mm.export_messages(openai, "anthropic")
    assert [block["type"] for block in anthropic[2]["content"]] == [
        "thinking", "text", "tool_use", "tool_use"]
    assert mm.export_messages(anthropic, "openai") == openai
    assert mm.export_messages(openai, "openai") == openai
    for form in (openai, anthropic):
        assert tiny.tokenizer.render(form, keep_thinking=True) == tiny.tokenizer.render(
            turns, keep_thinking=True).replace("\n</response>", "</response>")
    with pytest.raises(mm.ArgumentError, match="'openai' or 'anthropic'"):
        mm.export_messages(turns, "gemini")
    with pytest.raises(mm.ArgumentError, match="message 0"):
        mm.export_messages([{"role": "x"}], "openai")


# ---- Several answers ----


def test_n_answers_of_one_prompt(tiny):
    """Each is what its seed gives alone, with hooks and streamed as well."""
    options = {"max_new_tokens": 8, "top_logprobs": 1}

    def shift(tensor, tap):
        memoryview(tensor)[0, 0] = 1.0

    for more in ({}, {"hooks": [(("resid_post", 1), shift)]}):
        made = tiny.generate("import os", n=3, seed=7, **options, **more)
        alone = [tiny.generate("import os", seed=7 + i, **options, **more) for i in range(3)]
        assert [one.tokens for one in made] == [one.tokens for one in alone]
        assert [one.logprobs for one in made] == [one.logprobs for one in alone]
        assert [one.seed for one in made] == [7, 8, 9]
    texts = ["", ""]
    for index, piece in tiny.generate([5], n=2, seed=7, stream=True, max_new_tokens=8):
        texts[index] += piece
    assert texts == [tiny.generate([5], seed=seed, max_new_tokens=8).text for seed in (7, 8)]
    assert len(tiny.generate("x", n=1, max_new_tokens=1)) == 1
    first, second = tiny.generate(iter([5, 6]), n=2, seed=7, max_new_tokens=2)
    assert second.tokens == tiny.generate([5, 6], seed=8, max_new_tokens=2).tokens
    for n, error in ((0, mm.ArgumentError), (10**9, mm.ArgumentError), (1.5, TypeError)):
        with pytest.raises(error, match="n "):
            tiny.generate("x", n=n)
    with pytest.raises(mm.ArgumentError, match="one prompt"):
        tiny.generate(["x", "y"], n=2)
