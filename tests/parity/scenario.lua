-- The scenario in Lua; scenario.py is the same in Python. Their output must be equal, byte by byte.
--     luajit scenario.lua MODEL FOLDER      FOLDER: damaged files that run.py made

local ffi = require "ffi"
local bit = require "bit"
local here = arg[0]:match "^(.*)/" or "."
package.path = here .. "/../../lua/?.lua;" .. here .. "/../../lua/?/init.lua;" .. package.path
local mm = require "minimax2"
local Grammar = require "minimax2.grammar"

local folder = arg[2]
local model = assert(mm.load(arg[1]))
local tokenizer = model.tokenizer
local prompt = "def add(a, b):\n    return a + b\n\n# The sum of"

local function say(...)
    local parts = { ... }
    for i, part in ipairs(parts) do
        parts[i] = type(part) == "table" and "[" .. table.concat(part, " ") .. "]" or tostring(part)
    end
    io.write(table.concat(parts, " "), "\n")
end

-- FNV-1a of bytes.
local function hash(bytes)
    local h = 0xcbf29ce484222325ULL
    for i = 1, #bytes do
        h = bit.bxor(h, bytes:byte(i)) * 0x100000001b3ULL
    end
    return bit.tohex(h)
end

-- The bits of float32 values.
local function bits(values)
    local out, float = {}, ffi.new "float[1]"
    for i, value in ipairs(values) do
        float[0] = value
        out[i] = bit.tohex(ffi.cast("uint32_t *", float)[0])
    end
    return out
end

local function escaped(text)
    return (text:gsub("\\", "\\\\"):gsub("\n", "\\n"):gsub("%z", "\\0"))
end

local function none(value)
    return value == nil and "none" or value
end

say "# facts"
say(mm.version, mm.cpu(), model:info "isa", model.nbytes, model.parameters)
for _, key in ipairs { "format", "architecture", "name", "license", "quantization", "precision",
    "chat_template", "x" } do
    say(key, none(model:info(key)))
end
for _, name in ipairs { "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads",
    "head_dim", "rotary_dim", "num_local_experts", "num_experts_per_tok", "intermediate_size",
    "vocab_size", "max_position_embeddings" } do
    say(name, model.config[name])
end
say(bits { model.config.rope_theta, model.config.rms_norm_eps, model.config.routed_scaling_factor })

say "# cost"
for _, arguments in ipairs { {}, { 1, 100 }, { 1, 100, "f32" }, { 300, 0 }, { 7, 4000 } } do
    for _, cost in ipairs { model:cost(unpack(arguments)) } do
        local values = {}
        for i, name in ipairs { "weight_bytes", "kv_bytes", "int8_ops", "bf16_ops", "f32_ops" } do
            values[i] = ("%.17g"):format(cost[name])
        end
        say(values)
    end
end

say "# plan"
for _, options in ipairs { {}, { context = 300, kv_dtype = "int8", chunk = 64, sessions = 5 } } do
    local plan, values = model:plan(options), {}
    for i, name in ipairs { "context", "chunk", "sessions", "weights", "cache", "cache_page", "session",
        "buffers", "needed" } do
        values[i] = ("%.17g"):format(plan[name])
    end
    say(values)
end

say "# tensors"
for name, tensor in model:tensors() do
    say(name, tensor.dtype, tensor.shape, tensor.nbytes, tensor.readonly)
end
say(hash(model:tensor("model.norm.weight"):bytes()))
say(hash(model:tensor("model.norm.weight"):f32():bytes()))
say(hash(model:weight("model.embed_tokens.weight", 100, 20):bytes()))
say(hash(model:weight("model.layers.1.self_attn.q_proj.weight"):bytes()))
for _, suffix in ipairs { "", "_scale_inv" } do
    local info = model:weight_info("model.layers.1.self_attn.q_proj.weight" .. suffix)
    say(info.shape, info.dtype, info.nbytes, info.is_part)
end

say "# tokenizer"
say(tokenizer.vocab_size, none(tokenizer.bos), none(tokenizer.eos), none(tokenizer.unk),
    none(tokenizer.pad), none(tokenizer.think_open), none(tokenizer.think_close))
local texts = { "", "Hello, world!", "  spaces\n\n\ttabs ", "naïve 日本語 🙂 e\204\129", "1234567890",
    "]~b]user\nhi[e~[", "<think>no</think>", "a\0b", "\255\254 broken \226\130", ("na"):rep(300), prompt }
for _, text in ipairs(texts) do
    local plain, special = tokenizer:ids(text), tokenizer:ids(text, { special = true })
    say(plain, special, escaped(tokenizer:decode(plain)), hash(tokenizer:decode(special, { special = true })))
end
local all = {}
for id = 0, tokenizer.vocab_size - 1 do
    all[id + 1] = tokenizer:token(id)
end
say(hash(table.concat(all, "\0")))
say(tokenizer:added())
say(none(tokenizer:id " the"), none(tokenizer:id "no token is called this"))

say "# chat"
say(tokenizer.unknown_template == nil)
local turns = {
    { role = "system", content = "Be brief." },
    { role = "user", content = "Hi [e~[ there <think>" },
    { role = "assistant", content = "Hello.", thinking = "A greeting." },
    { role = "user", content = "2 + 3?" },
    { role = "assistant", content = "5", thinking = "Easy." },
}
for count = 1, #turns do
    local some = { unpack(turns, 1, count) }
    for _, generation in ipairs { true, false } do
        say(escaped(tokenizer:render(some, { generation_prompt = generation })))
        say(tokenizer:template(some, { generation_prompt = generation }))
    end
end

say "# tools"
local tools = { { ["function"] = { name = "f", description = "d <é>", parameters = {
    type = "object", properties = { a = { type = "integer" }, b = { type = "string" } } } } } }
local called = { unpack(turns) }
called[#called + 1] = { role = "user", content = { "x", { type = "text", text = "y" } } }
called[#called + 1] = { role = "assistant", content = "", reasoning_content = "R", tool_calls = {
    { name = "f", arguments = { a = 1, b = 'x\n"<y>', c = { 0.5, true, { k = "ü" } } } } } }
called[#called + 1] = { role = "tool", content = { "r1", "r2" } }
for _, thinking in ipairs { true, false } do
    for _, keep in ipairs { true, false } do
        say(escaped(tokenizer:render(called, { tools = tools, thinking = thinking, keep_thinking = keep,
            identity = "Me." })))
    end
    say(tokenizer:template(called, { tools = tools, thinking = thinking }))
end
for _, thinking in ipairs { "nil", true, false, 0, 5 } do
    if thinking == "nil" then
        thinking = nil
    end
    local ids = tokenizer:template(turns, { thinking = thinking })
    say(escaped(tokenizer:render(turns, { thinking = thinking }):sub(-20)), { unpack(ids, #ids - 5) })
end
local calls = tokenizer:ids('hm\n</think>\n\nA\n<minimax:tool_call>\n<invoke name="f">\n<parameter name="a">'
    .. '5</parameter>\n<parameter name="b">x</y</parameter></invoke><invoke name="g"/>'
    .. "</minimax:tool_call>B[e~[",
    { special = true })
local called_text, about = model:generate(turns, { tools = tools, seed = 1, mask = function(done)
    local mask = mm.mask(model.config.vocab_size)
    mm.allow(mask, calls[#done + 1])
    return mask
end })
say(escaped(called_text), about.thinking, about.tokens, about.thinking_tokens)
for _, call in ipairs(about.calls) do
    say(call.name, escaped(call.json), call.state, call.known, call.at)
end
local limited, more = model:generate(turns, { thinking = 4, max_new_tokens = 16, seed = 1 })
say(escaped(limited), escaped(more.thinking), more.tokens, more.thinking_tokens)

say "# tools that are called"
local checked = { type = "object", required = { "a" }, properties = {
    a = { type = "integer" }, b = { enum = { "x", "é" } }, c = { type = "array", items = {
        type = "number" } } } }
local called_first = { "</think>\n\nA\n<minimax:tool_call>\n" }
for _, call in ipairs {
    { "f", '<parameter name="a">5</parameter><parameter name="b">é</parameter>\n' },
    { "f", "" }, { "f", '<parameter name="a">x\ty</parameter>\n' },
    { "f", '<parameter name="a">5</parameter><parameter name="b">y</parameter>\n' },
    { "f", '<parameter name="a">5</parameter><parameter name="c">[1, "2"]</parameter>\n' },
    { "f", '<parameter name="q">5</parameter>\n' }, { "g", "" } } do
    table.insert(called_first, ('<invoke name="%s">\n%s</invoke>\n'):format(call[1], call[2]))
end
local replies, begun = {
    tokenizer:ids(table.concat(called_first) .. "</minimax:tool_call>[e~[", { special = true }),
    tokenizer:ids("hm</think>\n\nB[e~[", { special = true }),
}, 0
local agent = model:chat { system = "S", seed = 1, tools = {
    { name = "f", description = "d", parameters = checked, call = function(given)
        return { a = given.a, ok = true }
    end } } }
for kind, text, call in agent:pieces("x", { mask = function(done)
    begun = begun + (#done == 0 and 1 or 0)
    local mask = mm.mask(model.config.vocab_size)
    mm.allow(mask, replies[begun][#done + 1])
    return mask
end }) do
    say(kind, escaped(text), none(call))
end
say(hash(agent.session:tokens():bytes()))
for _, form in ipairs { "openai", "anthropic" } do
    say(tokenizer:template(mm.export_messages(agent.messages, form)))
end
local twig = agent:fork()
local so_far = #agent.messages
say(so_far, #agent:undo(), agent.session.length, twig.session.length)
twig.messages = { twig.messages[1], twig.messages[2] }
say(hash(twig.session:tokens():bytes()))
say(select(2, twig:send(nil, { max_new_tokens = 5, tool_choice = "f" })).tokens)
say(select(2, model:generate(turns, { tools = agent.defaults.tools, tool_choice = "required", thinking = 3,
    seed = 1, max_new_tokens = 20 })).tokens)
for _, info in ipairs(select(2, model:generate(prompt, { n = 2, seed = 3, max_new_tokens = 6 }))) do
    say(info.tokens)
end

say "# logits"
local session = assert(model:session { chunk = 5 })
session:feed(prompt):run()
say(session.pos, session.length, session.context, hash(session:logits():bytes()))
local ids, logprobs = session:top(5)
say(ids, bits(logprobs))
say(bits(session:logprobs { 0, 1, 2, 300 }))
local rows = model:logits(prompt, "all")
say(rows.shape, hash(rows:bytes()))
say(hash(model:logits(turns):bytes()))

say "# grammar"
for _, case in ipairs {
    { { regex = "[a-z]+ \\d{2,3}" }, "ab 12" },
    { { choices = { "red", "dark green" } }, "red" },
    { { json_schema = '{"properties": {"b": {"type": "integer"}, "a": {"type": "string", "maxLength": 3}}}' },
        '{"b": 7,"a":"é"}' },
} do
    local grammar = Grammar.of(model, case[1], "parity")
    say(grammar:matches(case[2]), grammar:matches "other")
    for _, start in ipairs { "text", "thinking" } do
        local constraint, pushed = grammar:constraint(start), {}
        local text = (start == "text" and "" or "x</think>\n") .. case[2]
        for char in text:gmatch "[%z\1-\127\194-\244][\128-\191]*" do
            local words = math.ceil(model.config.vocab_size / 32)
            say(hash(ffi.string(constraint:mask(), words * 4)), constraint:accepts(),
                none(constraint:fork():forced()))
            for byte in char:gmatch "." do
                pushed[#pushed + 1] = tokenizer:id(byte)
            end
            constraint:follow(pushed)
        end
        say(constraint:accepts())
    end
end
say "# generate"
for _, options in ipairs {
    { temperature = 0 },
    { seed = 1 },
    { seed = 4294967295, temperature = 0.7, top_k = 0, top_p = 0.9 },
    { seed = 2, min_p = 0.02, typical_p = 0.9, top_n_sigma = 2.5 },
    { seed = 3, repetition_penalty = 1.2, presence_penalty = 0.3, frequency_penalty = 0.2,
        penalty_window = 32 },
    { seed = 4, dry_multiplier = 0.8, dry_base = 1.75, dry_allowed_length = 2, dry_window = -1,
        breakers = { 10, 13 } },
    { temperature = 0, bias = { [65] = 3.5, [10] = -math.huge } },
} do
    options.max_new_tokens = 24
    options.top_logprobs = 2
    local _, info = model:generate(prompt, options)
    local chosen, best = {}, {}
    for i, entry in ipairs(info.logprobs) do
        chosen[i] = entry.logprob
        best[#best + 1] = entry.top[1].id
        best[#best + 1] = entry.top[2].id
    end
    say(info.tokens, info.finish_reason, bits(chosen), best)
end
local _, answer = model:generate(turns, { seed = 5, max_new_tokens = 24 })
say(answer.tokens, answer.finish_reason)

local at_once, instant = model:generate(turns, { seed = 5, max_new_tokens = 12, thinking = false })
say(escaped(at_once), instant.tokens, none(instant.thinking))

-- A mask that leaves one token at a time makes the model say what we want.
local function scripted(text, options)
    local script = tokenizer:ids(text)
    script[#script + 1] = tokenizer.eos
    options.mask = function(tokens)
        local mask = mm.mask(model.config.vocab_size)
        mm.allow(mask, script[#tokens + 1])
        return mask
    end
    local text_out, info = model:generate(options.prompt or "x", {
        mask = options.mask, stop = options.stop, max_new_tokens = options.max_new_tokens, seed = 1,
    })
    say(escaped(text_out), info.finish_reason, info.tokens, escaped(none(info.thinking)))
end
scripted("one two three four", {})
scripted("one two three four", { stop = "o thr" })
scripted("one two three four", { stop = { "zebra", "fourth", "two" } })
scripted("one two three four", { max_new_tokens = 3 })
scripted("日本語 🙂!", { stop = "!" })
scripted("\n thoughts\n", { prompt = turns })

-- Ids of the head that the tokenizer does not have.
local padding = model.config.vocab_size - 1
local empty, padded = model:generate("x", { max_new_tokens = 3, seed = 1, bias = { [padding] = 1e9 } })
say(escaped(empty), padded.tokens, padded.finish_reason)

say "# pieces"
for piece in model:stream(prompt, { seed = 8, max_new_tokens = 30, stop = "\n\n" }) do
    say(escaped(piece))
end

say "# callbacks that raise"
-- A callback that raises an error the first time.
local function once(act)
    local raised = false
    return function(...)
        if not raised then
            raised = true
            error("not now", 0)
        end
        return act(...)
    end
end

for _, asked in ipairs {
    { mask = once(function() end) },
    { logits_processor = once(function(_, logits)
        logits[7] = logits[7] + 30
    end) },
    { hooks = { { "resid_post", 1, once(function() end) } } },
} do
    asked.seed, asked.max_new_tokens = 8, 6
    local stream = model:stream(prompt, asked)
    local _, message = pcall(stream.finish, stream)
    say(message, stream:tokens())
    say((select(2, stream:finish())).tokens)
end

say "# turns"
say(model:end_tokens())
for _, name in ipairs { "eos-list", "eos-wrong" } do
    local other = assert(mm.load(folder .. "/" .. name))
    say(other:end_tokens())
    local chat = assert(other:chat { system = "Be brief.", max_new_tokens = 9 })
    for turn, options in ipairs { { seed = 1 }, { bias = { [other:end_tokens()[1]] = 1e9 } }, { seed = 3 },
        { bias = { [tokenizer.think_close] = 20 }, seed = 4 } } do
        local text, info = chat:send("Turn " .. turn, options)
        say(escaped(text), escaped(info.thinking), info.tokens, info.finish_reason)
    end
    local timeline = {}
    for i = 0, chat.session.length - 1 do
        timeline[i + 1] = chat.session:tokens()[i]
    end
    say(timeline)
end

say "# forks"
local trunk = assert(model:session())
trunk:feed(prompt):run()
local branch = assert(trunk:fork())
say(branch.pos, branch.length, branch.context, hash(branch:logits():bytes()))
trunk:feed({ 65, 66 }):run()
branch:feed({ 67 }):run()
say(hash(trunk:logits():bytes()), hash(branch:logits():bytes()))
branch:rewind(4)
branch:feed({ 65, 66 }):run()
say(hash(branch:logits():bytes()))

say "# tokens ahead"
local ahead = assert(model:session())
ahead:feed(prompt)
ahead:draft { 65, 66, 67 }
ahead:run()
say(ahead.pos, ahead.length, hash(ahead:logits():bytes()))
ahead:feed({ 65, 66, 68 }):run()
say(ahead.pos, hash(ahead:logits():bytes()))
for _, speculate in ipairs { true, false, 2 } do
    local options = { max_new_tokens = 24, seed = 2, speculate = speculate }
    local _, result = model:generate(("a b c\n"):rep(4), options)
    say(result.tokens, result.finish_reason)
end
ahead:close()

say "# on disk"
local place = folder .. "/session"
assert(branch:save(place))
local function tokens_of(of)
    local timeline = {}
    for i = 0, of.length - 1 do
        timeline[i + 1] = of:tokens()[i]
    end
    return timeline
end
for _, mapped in ipairs { true, false } do
    local again = assert(model:restore(place, { mapped = mapped, chunk = 3 }))
    say(again.pos, again.length, again.context, tokens_of(again), hash(again:logits():bytes()))
    again:feed({ 65, 66 }):run()
    say(hash(again:logits():bytes()))
end
say(assert(model:restore(place, { context = branch.length })).context)
branch:feed { 7 }
assert(branch:save(place))
say(assert(model:restore(place)).pos, assert(model:restore(place)).length)

say "# prefixes"
local shared = assert(mm.load(arg[1], { prefix_cache = 2 ^ 28, prefix_folder = folder }))
local long = {}
for i = 0, 599 do
    long[i + 1] = (i * i * 7 + 13 * i) % 4000
end
for _, count in ipairs { 600, 600, 513, 512 } do
    local own = assert(shared:session())
    own:feed({ unpack(long, 1, count) }):run()
    say(own.reused, own.pos, hash(own:logits():bytes()))
    own:close()
end
while shared:prefix_stats().unwritten > 0 do end
local stats = shared:prefix_stats()
say(stats.pages, stats.bytes, stats.limit, stats.reused, stats.added, stats.evicted, stats.read,
    stats.removed, stats.damaged, stats.failed, stats.problem == nil)
shared:close()
for file in io.popen("ls " .. folder):lines() do
    if file:find "%.mm2prefix$" then
        os.remove(folder .. "/" .. file)
    end
end

say "# prompts together"
local answers, infos = model:generate({ prompt, { prompt = turns, seed = 3 }, { 5, 6, 7 },
    { prompt = "Once", max_new_tokens = 4, stop = "e" } },
    { max_new_tokens = 16, seed = 2, top_logprobs = 1 })
for i, text in ipairs(answers) do
    local chosen = {}
    for j, entry in ipairs(infos[i].logprobs) do
        chosen[j] = entry.logprob
    end
    say(escaped(text), infos[i].tokens, infos[i].finish_reason, infos[i].seed, bits(chosen))
end

say "# rewind and sync"
session:rewind(4)
say(session.pos, session.length)
session:feed({ 65, 66 }):run()
say(hash(session:logits():bytes()))
say(session:sync(prompt))
session:run()
say(hash(session:logits():bytes()))
say(session:sync(prompt .. " two and two"))
session:run()
say(session.length, hash(session:logits():bytes()))
say(session:sync "def add(a, b)")
session:run()
say(session.length, hash(session:logits():bytes()))

say "# edits"
local direction = {}
for i = 1, model.config.hidden_size do
    direction[i] = (i * 37 % 101) / 64
end
for _, edits in ipairs {
    { { "add", "resid_post", values = direction, factor = 0.5, layers = { 1, 2 }, positions = { 1, 4 } } },
    { { "ablate_heads", { 0, 3 }, layers = 1 }, { "clamp", "resid_mid", low = -2, high = 2 } },
    { { "project_out", "resid_post", values = direction }, { "cap", "logits", limit = 10 } },
    { { "mask_experts", { 1, 2 } }, { "force_experts", 5, layers = 0 }, { "bias_experts", { [3] = 0.25 } } },
    { { "weigh_experts", { [0] = 0.5 } }, { "keep_experts", 2, layers = -1 } },
} do
    local one = model:session { context = 64 }
    one:set_edits(edits)
    one:feed(prompt)
    one:run()
    say(hash(one:logits():bytes()))
    one:close()
end

say "# taps"
for tap in model:trace(prompt) do
    say(tap.point, tap.layer, tap.first, tap.count, tap.tensor.dtype, tap.tensor.shape,
        hash(tap.tensor:bytes()))
end
local written = model:run_with_hooks(prompt, {
    { "mlp_out", 1, function(tensor)
        for i = 0, #tensor - 1 do
            tensor[i] = 0
        end
    end },
    { "resid_post", function(tensor, tap)
        tensor[0] = tensor[0] + tap.layer
    end },
    { "mlp_out", -2, function(tensor)
        tensor[0] = 3
    end },
})
say(hash(written:bytes()))

local _, steered = model:generate(prompt, { temperature = 0, max_new_tokens = 12, seed = 1, hooks = {
    { "resid_post", function(tensor, tap)
        tensor[0] = tensor[0] + tap.layer
    end },
} })
say(unpack(steered.tokens))

say "# batch"
local a, b = assert(model:session()), assert(model:session { kv_dtype = "f32" })
local c = assert(model:session { kv_dtype = "int8" })
local batch = assert(model:batch { a, b, c })
say(a.kv_dtype, b.kv_dtype, c.kv_dtype)
a:feed(prompt)
b:feed "Once upon a time"
c:feed(prompt)
batch:run()
say(hash(a:logits():bytes()), hash(b:logits():bytes()), hash(c:logits():bytes()))

say "# errors"
local function fails(fn, ...)
    local ok, value, message = pcall(fn, ...)
    if ok then
        say("error:", value == nil and message or "missing")
    else
        say("error:", (value:gsub("^[^:]+:%d+: ", "")))
    end
end
-- Options that are refused before anything is fed.
local refused, talk = assert(model:session()), assert(model:chat())
local function refuses(options)
    for _, call in ipairs { refused.generate, model.generate, talk.send } do
        local object = call == model.generate and model or call == talk.send and talk or refused
        local ok, message = pcall(call, object, "Hi", options)
        say("refused:", (message:gsub("^[^:]+:%d+: ", ""):gsub("^%l+:%l+: ", "")))
        assert(not ok)
    end
    say(refused.length, talk.session.length, #talk.messages)
end

for _, name in ipairs { "absent", "empty.gguf", "short.gguf", "no-config", "bad-config", "no-weights" } do
    fails(mm.load, folder .. "/" .. name)
    fails(mm.tokenizer, folder .. "/" .. name)
end
fails(mm.load, "")
fails(mm.load, arg[1], { threads = 1025 })
fails(model.tensor, model, "model.layers.99.nothing")
fails(model.session, model, { context = 2147483647 })
fails(model.session, model, { chunk = 5000 })
local small = assert(model:session { context = 4 })
fails(small.feed, small, "")
fails(small.feed, small, {})
fails(small.feed, small, { 1, -1 })
fails(small.feed, small, { 1, 2, model.config.vocab_size })
fails(small.logits, small)
small:feed { 1, 2, 3 }
fails(small.logits, small)
fails(small.feed, small, { 4, 5 })
fails(small.rewind, small, 5)
small:run()
small:rewind(2)
fails(small.logits, small)
fails(a.run, a)
fails(batch.add, batch, a)
fails(batch.remove, batch, small)
fails(tokenizer.decode, tokenizer, { -1 })
fails(tokenizer.token, tokenizer, 2147483647)
fails(tokenizer.token, tokenizer, -1)
fails(model.cost, model, 1, 5000)
fails(tokenizer.render, tokenizer, { { role = "robot", content = "x" } })
fails(tokenizer.render, tokenizer, { { role = "user" } })
local hello = { { role = "user", content = "x" } }
for _, wrong in ipairs { { { name = "" } }, { { name = "f", parameters = 5 } },
    { { name = "f", paramters = { type = "object" } } }, { { ["function"] = { name = "f" }, x = 1 } },
    { { name = "f", type = "web_search" } }, { { name = "f", description = 5 } } } do
    fails(tokenizer.render, tokenizer, hello, { tools = wrong })
    fails(model.chat, model, { tools = wrong })
end
fails(a.save, a, "")
fails(a.save, a, folder .. "/no/where")
fails(a.save, a, folder)
fails(model.restore, model, folder .. "/absent")
fails(model.restore, model, folder .. "/short.gguf")
fails(model.restore, model, arg[1] .. "/tokenizer.json")
fails(model.restore, model, place, { context = 3 })
fails(model.restore, model, place, { kv_dtype = "f32" })
fails(assert(mm.load(arg[1], { precision = "exact" })).restore,
    assert(mm.load(arg[1], { precision = "exact" })), place)
fails(model.sampler, model, { temperature = -1 })
fails(model.sampler, model, { temperature = 0 / 0 })
fails(model.sampler, model, { top_k = -1 })
fails(model.sampler, model, { top_p = 1.5 })
fails(model.sampler, model, { repetition_penalty = 0 })
fails(model.sampler, model, { bias = { [-1] = 1 } })
fails(model.sampler, model, { breakers = { model.config.vocab_size } })
fails(model.generate, model, "x", { mask = mm.mask(model.config.vocab_size) })
fails(model.generate, model, "x", { top_logprobs = 1, temperature = 0, max_new_tokens = 1,
    mask = function() return mm.mask(model.config.vocab_size) end })
for _, options in ipairs { { temperature = -1 }, { top_k = -1 }, { min_p = 2 }, { dry_base = 0.5 },
    { bias = { [model.config.vocab_size] = 1 } }, { breakers = { -1 } } } do
    refuses(options)
end
fails(model.generate, model, ("x "):rep(model.config.max_position_embeddings + 1))
fails(model.logits, model, ("x "):rep(model.config.max_position_embeddings + 1))
fails(model.run_with_hooks, model, { 1, 2 }, { { "expert_indices", function(tensor)
    tensor[0] = 1000
end } })
local function spoil(_, logits)
    logits[3] = 0 / 0
end
fails(model.generate, model, "x", { max_new_tokens = 2, seed = 1, logits_processor = spoil })
fails(talk.send, talk, { { role = "user", content = "Hi" }, { role = "tool", content = "4" } })
talk:send("Hi", { max_new_tokens = 2, seed = 1 })
fails(talk.send, talk, { role = "tool", content = "4" })
fails(talk.send, talk, { { role = "user", content = "Hi" }, { role = "tool", content = "4" } })
say(talk.session.length, #talk.messages)
local overtaken = assert(model:session())
overtaken:feed(prompt)
local stream = overtaken:stream { max_new_tokens = 4, seed = 1 }
stream:next()
overtaken:feed { 5 }
fails(stream.finish, stream)
say(#stream:tokens(), stream:text())
