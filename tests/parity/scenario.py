"""The scenario in Python; scenario.lua is the same in Lua. Their output must be equal.

    python scenario.py MODEL FOLDER      FOLDER: damaged files that run.py made
"""

import math
import os
import re
import struct
import sys

import minimax2 as mm
from minimax2 import _native_text

folder = sys.argv[2]
model = mm.load(sys.argv[1])
tokenizer = model.tokenizer
prompt = "def add(a, b):\n    return a + b\n\n# The sum of"


def say(*parts):
    words = []
    for part in parts:
        if isinstance(part, (list, tuple)):
            words.append("[" + " ".join(str(item) for item in part) + "]")
        elif isinstance(part, bool):
            words.append(str(part).lower())
        else:
            words.append(str(part))
    sys.stdout.buffer.write(" ".join(words).encode("utf-8", "surrogateescape") + b"\n")


def hash_of(source):
    """FNV-1a of bytes or of a tensor's bytes."""
    value = 0xcbf29ce484222325
    for byte in bytes_of(source):
        value = (value ^ byte) * 0x100000001b3 & 0xffffffffffffffff
    return f"{value:016x}"


def bytes_of(source):
    return source if isinstance(source, bytes) else memoryview(source).cast("B").tobytes()


def bits(values):
    """The bits of float32 values."""
    return [struct.pack(">f", value).hex() for value in values]


def escaped(text):
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\0", "\\0")


def none(value):
    return "none" if value is None else value


say("# facts")
say(mm.__version__, mm.cpu(), model.info("isa"), model.nbytes, model.parameters)
for key in ("format", "architecture", "name", "license", "quantization", "precision",
            "chat_template", "x"):
    say(key, none(model.info(key)))
for name in ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads",
             "head_dim", "rotary_dim", "num_local_experts", "num_experts_per_tok",
             "intermediate_size", "vocab_size", "max_position_embeddings"):
    say(name, getattr(model.config, name))
say(bits([model.config.rope_theta, model.config.rms_norm_eps, model.config.routed_scaling_factor]))

say("# cost")
for arguments in ((), (1, 100), (1, 100, "f32"), (300, 0), (7, 4000)):
    for cost in model.cost(*arguments):
        say([f"{value:.17g}" for value in cost])

say("# plan")
for options in ({}, {"context": 300, "kv_dtype": "int8", "chunk": 64, "sessions": 5}):
    plan = model.plan(predict=False, **options)
    plan |= plan["memory"]
    say([f"{plan[name]:.17g}" for name in ("context", "chunk", "sessions", "weights", "cache",
                                           "cache_page", "session", "buffers", "needed")])

say("# tensors")
for name, tensor in model.items():
    say(name, tensor.dtype, tensor.shape, tensor.nbytes, tensor.readonly)
say(hash_of(model["model.norm.weight"]))
say(hash_of(model["model.norm.weight"].float()))
say(hash_of(model.weight("model.embed_tokens.weight", 100, 20)))
say(hash_of(model.weight("model.layers.1.self_attn.q_proj.weight")))
for suffix in "", "_scale_inv":
    info = model.weight_info("model.layers.1.self_attn.q_proj.weight" + suffix)
    say(info.shape, info.dtype, info.nbytes, info.is_part)

say("# tokenizer")
say(tokenizer.vocab_size, none(tokenizer.bos), none(tokenizer.eos), none(tokenizer.unk),
    none(tokenizer.pad), none(tokenizer.think_open), none(tokenizer.think_close))
texts = ["", "Hello, world!", "  spaces\n\n\ttabs ", "naïve 日本語 🙂 e\u0301", "1234567890",
         "]~b]user\nhi[e~[", "<think>no</think>", "a\0b", b"\xff\xfe broken \xe2\x82", "na" * 300,
         prompt]
for text in texts:
    plain, special = tokenizer.encode(text), tokenizer.encode(text, special=True)
    say(plain, special, escaped(tokenizer.decode_bytes(plain)),
        hash_of(tokenizer.decode_bytes(special, special=True)))
say(hash_of(b"\0".join(tokenizer.token(id) for id in range(tokenizer.vocab_size))))
say(tokenizer.added)
say(none(tokenizer.id(" the")), none(tokenizer.id("no token is called this")))

say("# chat")
say(tokenizer.unknown_template is None)
turns = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi [e~[ there <think>"},
    {"role": "assistant", "content": "Hello.", "thinking": "A greeting."},
    {"role": "user", "content": "2 + 3?"},
    {"role": "assistant", "content": "5", "thinking": "Easy."},
]
for count in range(1, len(turns) + 1):
    for generation in (True, False):
        say(escaped(tokenizer.render(turns[:count], generation)))
        say(tokenizer.apply_chat_template(turns[:count], generation))

say("# tools")
tools = [{"function": {"name": "f", "description": "d <é>", "parameters": {
    "type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}}}]
called = [*turns, {"role": "user", "content": ["x", {"type": "text", "text": "y"}]},
          {"role": "assistant", "content": "", "reasoning_content": "R", "tool_calls": [
              {"name": "f", "arguments": {"a": 1, "b": "x\n\"<y>", "c": [0.5, True, {"k": "ü"}]}}]},
          {"role": "tool", "content": ["r1", "r2"]}]
for thinking in (True, False):
    for keep in (True, False):
        say(escaped(tokenizer.render(called, tools=tools, thinking=thinking, keep_thinking=keep,
                                     identity="Me.")))
    say(tokenizer.apply_chat_template(called, tools=tools, thinking=thinking))
for thinking in (None, True, False, 0, 5):
    say(escaped(tokenizer.render(turns, thinking=thinking)[-20:]),
        tokenizer.apply_chat_template(turns, thinking=thinking)[-6:])
calls = tokenizer.encode(
    "hm\n</think>\n\nA\n<minimax:tool_call>\n<invoke name=\"f\">\n<parameter name=\"a\">5"
    "</parameter>\n<parameter name=\"b\">x</y</parameter></invoke><invoke name=\"g\"/>"
    "</minimax:tool_call>B[e~[", True)


def next_of_calls(done):
    words = [0] * ((model.config.vocab_size + 31) // 32)
    words[calls[len(done)] // 32] = 1 << calls[len(done)] % 32
    return memoryview(struct.pack(f"{len(words)}I", *words)).cast("I")


written = model.generate(turns, tools=tools, seed=1, mask=next_of_calls)
say(escaped(written.text), written.thinking, written.tokens, written.thinking_tokens)
for call in written.calls:
    say(call.name, escaped(call.json), call.state, call.known, call.at)
limited = model.generate(turns, thinking=4, max_new_tokens=16, seed=1)
say(escaped(limited.text), escaped(limited.thinking), limited.tokens, limited.thinking_tokens)

say("# tools that are called")
checked = {"type": "object", "properties": {
    "a": {"type": "integer"}, "b": {"enum": ["x", "é"]}, "c": {"type": "array", "items": {
        "type": "number"}}}, "required": ["a"]}
replies = [tokenizer.encode(text, True) for text in (
    "</think>\n\nA\n<minimax:tool_call>\n" + "".join(
        f"<invoke name=\"{name}\">\n{given}</invoke>\n" for name, given in (
            ("f", "<parameter name=\"a\">5</parameter><parameter name=\"b\">é</parameter>\n"),
            ("f", ""), ("f", "<parameter name=\"a\">x\ty</parameter>\n"),
            ("f", "<parameter name=\"a\">5</parameter><parameter name=\"b\">y</parameter>\n"),
            ("f", "<parameter name=\"a\">5</parameter><parameter name=\"c\">[1, \"2\"]"
             "</parameter>\n"), ("f", "<parameter name=\"q\">5</parameter>\n"), ("g", "")))
    + "</minimax:tool_call>[e~[", "hm</think>\n\nB[e~[")]
begun = []


def next_of_replies(done):
    if not done:
        begun.append(True)
    words = [0] * ((model.config.vocab_size + 31) // 32)
    token = replies[len(begun) - 1][len(done)]
    words[token // 32] = 1 << token % 32
    return memoryview(struct.pack(f"{len(words)}I", *words)).cast("I")


agent = model.chat("S", seed=1, tools=[mm.Tool(
    lambda **given: {"a": given["a"], "ok": True}, name="f", description="d", parameters=checked)])
for piece in agent.pieces("x", mask=next_of_replies):
    say(piece.kind, escaped(piece.text), none(None if piece.call is None else piece.call + 1))
say(hash_of(struct.pack(f"{agent.session.length}i", *agent.session.tokens)))
for form in ("openai", "anthropic"):
    say(tokenizer.apply_chat_template(mm.export_messages(agent.messages, form)))
twig = agent.fork()
say(len(agent.messages), len(agent.undo()), agent.session.length, twig.session.length)
twig.messages = twig.messages[:2]
say(hash_of(struct.pack(f"{twig.session.length}i", *twig.session.tokens)))
say(twig.send(max_new_tokens=5, tool_choice="f").tokens)
say(model.generate(turns, tools=agent.tools, tool_choice="required", thinking=3, seed=1,
                   max_new_tokens=20).tokens)
for answer in model.generate(prompt, n=2, seed=3, max_new_tokens=6):
    say(answer.tokens)

say("# logits")
session = model.session(chunk=5)
session.feed(prompt).run()
say(session.pos, session.length, session.context, hash_of(session.logits))
best = session.top(5)
say([id for id, _ in best], bits([logprob for _, logprob in best]))
say(bits(session.logprobs([0, 1, 2, 300])))
rows = model(prompt, logits="all")
say(rows.shape, hash_of(rows))
say(hash_of(model(turns)))

say("# grammar")
for kind, form, text in (
        (_native_text.GRAMMAR_REGEX, "[a-z]+ \\d{2,3}", "ab 12"),
        (_native_text.GRAMMAR_CHOICES, '["red", "dark green"]', "red"),
        (_native_text.GRAMMAR_JSON_SCHEMA,
         '{"properties": {"b": {"type": "integer"}, "a": {"type": "string", "maxLength": 3}}}',
         '{"b": 7,"a":"é"}')):
    grammar = _native_text.grammar_new(tokenizer._c, kind, form)
    say(_native_text.grammar_matches(grammar, text.encode()),
        _native_text.grammar_matches(grammar, b"other"))
    for start in _native_text.START_TEXT, _native_text.START_THINKING:
        constraint = _native_text.constraint_new(grammar, start, model.config.vocab_size,
                                                 model.end_tokens)
        for byte in ("x</think>\n" if start else "") + text:
            fork = _native_text.constraint_fork(constraint)
            say(hash_of(_native_text.constraint_mask(constraint, model.config.vocab_size)),
                _native_text.constraint_accepts(constraint),
                *_native_text.constraint_forced(fork, 1) or ["none"])
            for char in byte.encode():
                _native_text.constraint_push(constraint, tokenizer.id(bytes([char])))
        say(_native_text.constraint_accepts(constraint))
say("# generate")
for options in (
        {"temperature": 0},
        {"seed": 1},
        {"seed": 4294967295, "temperature": 0.7, "top_k": 0, "top_p": 0.9},
        {"seed": 2, "min_p": 0.02, "typical_p": 0.9, "top_n_sigma": 2.5},
        {"seed": 3, "repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.2,
         "penalty_window": 32},
        {"seed": 4, "dry_multiplier": 0.8, "dry_base": 1.75, "dry_allowed_length": 2,
         "dry_window": -1, "breakers": [10, 13]},
        {"temperature": 0, "bias": {65: 3.5, 10: -math.inf}}):
    result = model.generate(prompt, max_new_tokens=24, top_logprobs=2, **options)
    say(result.tokens, result.finish_reason, bits([entry.logprob for entry in result.logprobs]),
        [id for entry in result.logprobs for id, _ in entry.top])
answer = model.generate(turns, seed=5, max_new_tokens=24)
say(answer.tokens, answer.finish_reason)
at_once = model.generate(turns, seed=5, max_new_tokens=12, thinking=False)
say(escaped(at_once.text), at_once.tokens, none(at_once.thinking))


def scripted(text, *, prompt="x", stop=(), max_new_tokens=1024):
    """A mask that leaves one token at a time makes the model say what we want."""
    script = [*tokenizer.encode(text), tokenizer.eos]

    def mask(tokens):
        words = [0] * ((model.config.vocab_size + 31) // 32)
        words[script[len(tokens)] // 32] = 1 << script[len(tokens)] % 32
        return memoryview(struct.pack(f"{len(words)}I", *words)).cast("I")

    result = model.generate(prompt, mask=mask, stop=stop, max_new_tokens=max_new_tokens, seed=1)
    say(escaped(result.text), result.finish_reason, result.tokens, escaped(none(result.thinking)))


scripted("one two three four")
scripted("one two three four", stop="o thr")
scripted("one two three four", stop=["zebra", "fourth", "two"])
scripted("one two three four", max_new_tokens=3)
scripted("日本語 🙂!", stop="!")
scripted("\n thoughts\n", prompt=turns)

# Ids of the head that the tokenizer does not have.
padding = model.config.vocab_size - 1
padded = model.generate("x", max_new_tokens=3, seed=1, bias={padding: 1e9})
say(escaped(padded.text), padded.tokens, padded.finish_reason)

say("# pieces")
for piece in model.generate(prompt, seed=8, max_new_tokens=30, stop="\n\n", stream=True):
    say(escaped(piece))

say("# callbacks that raise")


def once(then):
    """A callback that raises the first time."""
    calls = []

    def callback(*arguments):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("not now")
        return then(*arguments)
    return callback


def raise_first(logits):
    logits[7] += 30


for asked in ({"mask": once(lambda ids: None)},
              {"logits_processor": once(lambda ids, logits: raise_first(logits))},
              {"hooks": [(("resid_post", 1), once(lambda tensor, tap: None))]}):
    stream = model.generate(prompt, seed=8, max_new_tokens=6, stream=True, **asked)
    try:
        stream.result()
    except RuntimeError as error:
        say(error, stream.tokens)
    say(stream.result().tokens)

say("# turns")
say(model.end_tokens)
for name in ("eos-list", "eos-wrong"):
    other = mm.load(f"{folder}/{name}")
    say(other.end_tokens)
    chat = other.chat(system="Be brief.", max_new_tokens=9)
    for turn, options in enumerate((
            {"seed": 1}, {"bias": {other.end_tokens[0]: 1e9}}, {"seed": 3},
            {"bias": {tokenizer.think_close: 20}, "seed": 4}), 1):
        result = chat.send(f"Turn {turn}", **options)
        say(escaped(result.text), escaped(result.thinking), result.tokens, result.finish_reason)
    say(chat.session.tokens)

say("# forks")
trunk = model.session()
trunk.feed(prompt).run()
branch = trunk.fork()
say(branch.pos, branch.length, branch.context, hash_of(branch.logits))
trunk.feed([65, 66]).run()
branch.feed([67]).run()
say(hash_of(trunk.logits), hash_of(branch.logits))
branch.rewind(4)
branch.feed([65, 66]).run()
say(hash_of(branch.logits))

say("# tokens ahead")
ahead = model.session()
ahead.feed(prompt)
ahead.draft([65, 66, 67])
ahead.run()
say(ahead.pos, ahead.length, hash_of(ahead.logits))
ahead.feed([65, 66, 68]).run()
say(ahead.pos, hash_of(ahead.logits))
for speculate in (True, False, 2):
    result = model.generate("a b c\n" * 4, max_new_tokens=24, seed=2, speculate=speculate)
    say(result.tokens, result.finish_reason)
ahead.close()

say("# on disk")
place = f"{folder}/session"
branch.save(place)
for mapped in (True, False):
    again = model.restore(place, mapped=mapped, chunk=3)
    say(again.pos, again.length, again.context, again.tokens, hash_of(again.logits))
    again.feed([65, 66]).run()
    say(hash_of(again.logits))
small = model.restore(place, context=branch.length)
say(small.context)
branch.feed([7])
branch.save(place)
say(model.restore(place).pos, model.restore(place).length)

say("# prefixes")
shared = mm.load(sys.argv[1], prefix_cache=2**28, prefix_folder=folder)
long = [(i * i * 7 + 13 * i) % 4000 for i in range(600)]
for count in (600, 600, 513, 512):
    session_of_it = shared.session()
    session_of_it.feed(long[:count]).run()
    say(session_of_it.reused, session_of_it.pos, hash_of(session_of_it.logits))
    session_of_it.close()
while shared.prefix_stats.unwritten:
    pass
stats = shared.prefix_stats
say(stats.pages, stats.bytes, stats.limit, stats.reused, stats.added, stats.evicted, stats.read,
    stats.removed, stats.damaged, stats.failed, stats.problem is None)
shared.close()
for file in os.listdir(folder):
    if file.endswith(".mm2prefix"):
        os.remove(f"{folder}/{file}")

say("# prompts together")
for result in model.generate(
        [prompt, {"prompt": turns, "seed": 3}, [5, 6, 7],
         {"prompt": "Once", "max_new_tokens": 4, "stop": "e"}],
        max_new_tokens=16, seed=2, top_logprobs=1):
    say(escaped(result.text), result.tokens, result.finish_reason, result.seed,
        bits([entry.logprob for entry in result.logprobs]))

say("# rewind and sync")
session.rewind(4)
say(session.pos, session.length)
session.feed([65, 66]).run()
say(hash_of(session.logits))
say(session.sync(prompt))
session.run()
say(hash_of(session.logits))
say(session.sync(prompt + " two and two"))
session.run()
say(session.length, hash_of(session.logits))
say(session.sync("def add(a, b)"))
session.run()
say(session.length, hash_of(session.logits))

say("# edits")
direction = [i * 37 % 101 / 64 for i in range(1, model.config.hidden_size + 1)]
for edits in (
    mm.Edits().add("resid_post", direction, factor=0.5, layers=[1, 2], positions=slice(1, 4)),
    mm.Edits().ablate_heads([0, 3], layers=1).clamp("resid_mid", -2, 2),
    mm.Edits().project_out("resid_post", direction).cap("logits", 10),
    mm.Edits().mask_experts([1, 2]).force_experts(5, layers=0).bias_experts({3: 0.25}),
    mm.Edits().weigh_experts({0: 0.5}).keep_experts(2, layers=-1),
):
    with model.session(context=64, edits=edits) as one:
        one.feed(prompt).run()
        say(hash_of(one.logits))

say("# taps")
for tap in model.trace(prompt):
    say(tap.point, tap.layer, tap.first, tap.count, tap.tensor.dtype, tap.tensor.shape,
        hash_of(tap.tensor))


def silence(tensor, tap):
    memoryview(tensor).cast("B")[:] = bytes(tensor.nbytes)


def shift(tensor, tap):
    view = memoryview(tensor)
    view[0, 0] = view[0, 0] + tap.layer


def push(tensor, tap):
    memoryview(tensor)[0, 0] = 3


say(hash_of(model.run_with_hooks(prompt, [
    (("mlp_out", 1), silence), ("resid_post", shift), (("mlp_out", -2), push)])))

steered = model.generate(prompt, temperature=0, max_new_tokens=12, seed=1, hooks=[
    ("resid_post", shift)])
say(*steered.tokens)

say("# batch")
a, b = model.session(), model.session(kv_dtype="f32")
c = model.session(kv_dtype="int8")
batch = model.batch([a, b, c])
say(a.kv_dtype, b.kv_dtype, c.kv_dtype)
a.feed(prompt)
b.feed("Once upon a time")
c.feed(prompt)
batch.run()
say(hash_of(a.logits), hash_of(b.logits), hash_of(c.logits))

say("# errors")


# The index of a list's element in a sentence. Lua counts from 1.
INDEX = re.compile(r"(?<=^message )\d+|(?<=^tool )\d+|(?<= at index )\d+|(?<= ids\[)\d+"
                   r"|(?<=^history\[)\d+")


def fails(call):
    try:
        call()
    except KeyError as error:  # of a mapping; the library's sentence is behind it
        say("error:", error.__context__)
    except mm.Error as error:
        say("error:", INDEX.sub(lambda index: str(int(index[0]) + 1), str(error)))
    else:
        say("error: missing")


# Options that are refused before anything is fed.
refused, talk = model.session(), model.chat()


def refuses(**options):
    for call in (refused.generate, model.generate, talk.send):
        try:
            call("Hi", **options)
        except mm.Error as error:
            say("refused:", INDEX.sub(lambda index: str(int(index[0]) + 1), str(error)))
        else:
            say("refused: missing")
    say(refused.length, talk.session.length, len(talk.messages))


def misroute(tensor, tap):
    memoryview(tensor)[0, 0] = 1000


def spoil(ids, logits):
    logits[3] = math.nan


for name in ("absent", "empty.gguf", "short.gguf", "no-config", "bad-config", "no-weights"):
    fails(lambda: mm.load(f"{folder}/{name}"))
    fails(lambda: mm.Tokenizer(f"{folder}/{name}"))
fails(lambda: mm.load(""))
fails(lambda: mm.load(sys.argv[1], threads=1025))
fails(lambda: model["model.layers.99.nothing"])
fails(lambda: model.session(context=2147483647))
fails(lambda: model.session(chunk=5000))
small = model.session(context=4)
fails(lambda: small.feed(""))
fails(lambda: small.feed([]))
fails(lambda: small.feed([1, -1]))
fails(lambda: small.feed([1, 2, model.config.vocab_size]))
fails(lambda: small.logits)
small.feed([1, 2, 3])
fails(lambda: small.logits)
fails(lambda: small.feed([4, 5]))
fails(lambda: small.rewind(5))
small.run()
small.rewind(2)
fails(lambda: small.logits)
fails(lambda: a.run())
fails(lambda: batch.add(a))
fails(lambda: batch.remove(small))
fails(lambda: tokenizer.decode([-1]))
fails(lambda: tokenizer.token(2147483647))
fails(lambda: tokenizer.token(-1))
fails(lambda: model.cost(1, 5000))
fails(lambda: tokenizer.render([{"role": "robot", "content": "x"}]))
fails(lambda: tokenizer.render([{"role": "user"}]))
hello = [{"role": "user", "content": "x"}]
for tools in ([{"name": ""}], [{"name": "f", "parameters": 5}],
              [{"name": "f", "paramters": {"type": "object"}}],
              [{"function": {"name": "f"}, "x": 1}], [{"name": "f", "type": "web_search"}],
              [{"name": "f", "description": 5}]):
    fails(lambda: tokenizer.render(hello, tools=tools))
    fails(lambda: model.chat(tools=tools))
fails(lambda: a.save(""))
fails(lambda: a.save(f"{folder}/no/where"))
fails(lambda: a.save(folder))
fails(lambda: model.restore(f"{folder}/absent"))
fails(lambda: model.restore(f"{folder}/short.gguf"))
fails(lambda: model.restore(sys.argv[1] + "/tokenizer.json"))
fails(lambda: model.restore(place, context=3))
fails(lambda: model.restore(place, kv_dtype="f32"))
fails(lambda: mm.load(sys.argv[1], precision="exact").restore(place))
fails(lambda: mm.Sampler(model, temperature=-1))
fails(lambda: mm.Sampler(model, temperature=math.nan))
fails(lambda: mm.Sampler(model, top_k=-1))
fails(lambda: mm.Sampler(model, top_p=1.5))
fails(lambda: mm.Sampler(model, repetition_penalty=0))
fails(lambda: mm.Sampler(model, bias={-1: 1}))
fails(lambda: mm.Sampler(model, breakers=[model.config.vocab_size]))
nothing = memoryview(bytes((model.config.vocab_size + 31) // 32 * 4)).cast("I")
fails(lambda: model.generate("x", mask=nothing))
fails(lambda: model.generate("x", top_logprobs=1, temperature=0, max_new_tokens=1,
                             mask=lambda tokens: nothing))
for options in ({"temperature": -1}, {"top_k": -1}, {"min_p": 2}, {"dry_base": 0.5},
                {"bias": {model.config.vocab_size: 1}}, {"breakers": [-1]}):
    refuses(**options)
fails(lambda: model.generate("x " * (model.config.max_position_embeddings + 1)))
fails(lambda: model("x " * (model.config.max_position_embeddings + 1)))
fails(lambda: model.run_with_hooks([1, 2], [("expert_indices", misroute)]))
fails(lambda: model.generate("x", max_new_tokens=2, seed=1, logits_processor=spoil))
fails(lambda: talk.send([{"role": "user", "content": "Hi"}, {"role": "tool", "content": "4"}]))
talk.send("Hi", max_new_tokens=2, seed=1)
fails(lambda: talk.send({"role": "tool", "content": "4"}))
fails(lambda: talk.send([{"role": "user", "content": "Hi"}, {"role": "tool", "content": "4"}]))
say(talk.session.length, len(talk.messages))
overtaken = model.session().feed(prompt)
stream = overtaken.generate(max_new_tokens=4, seed=1, stream=True)
next(stream)
overtaken.feed([5])
fails(stream.result)
say(len(stream.tokens), stream.text)
