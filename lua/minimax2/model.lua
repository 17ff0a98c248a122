--- Model: an opened checkpoint; immutable, to be shared by any number of sessions.
---
--- Fields: tokenizer (nil if the checkpoint has none), config (a table, names as in config.json),
--- threads, nbytes (of all tensors), parameters, closed. close() ends its views and its tokenizer.
--- Sessions, batches, samplers and streams that were made before go on with token ids, and the files stay
--- mapped until they are closed too; what encodes text or starts a stream (feed of a string or messages,
--- stream, generate, chat, sample without a sampler) then raises "the model is closed".

local ffi = require "ffi"
local native = require "minimax2.native"
local handle = require "minimax2.handle"
local args = require "minimax2.args"
local messages = require "minimax2.messages"
local Batch = require "minimax2.batch"
local Chat = require "minimax2.chat"
local Request = require "minimax2.request"
local Sampler = require "minimax2.sampling"
local Session = require "minimax2.session"
local Stream = require "minimax2.stream"
local Tensor = require "minimax2.tensor"
local Tokenizer = require "minimax2.tokenizer"
local trace = require "minimax2.trace"

local lib, raise, check = native.lib, native.raise, native.check

local Model, properties = handle.class("model", "mm2_model", "mm2_model_release")

local isa_levels = { auto = lib.MM2_ISA_AUTO, ref = lib.MM2_ISA_REF, avx2 = lib.MM2_ISA_AVX2,
    avx512 = lib.MM2_ISA_AVX512, amx = lib.MM2_ISA_AMX, blas = lib.MM2_ISA_BLAS }
local precisions = { fast = lib.MM2_PRECISION_FAST, exact = lib.MM2_PRECISION_EXACT }
local known = { threads = true, isa = true, precision = true, writable = true,
    mapped = true, prefix_cache = true, prefix_folder = true, prefix_disk = true }

local config_fields = {
    "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim",
    "rotary_dim", "num_local_experts", "num_experts_per_tok", "intermediate_size", "vocab_size",
    "max_position_embeddings", "use_qk_norm", "use_routing_bias", "rope_theta", "rms_norm_eps",
    "routed_scaling_factor",
}

local limit_fields = { "threads", "plain_read", "best_read", "int8_ops", "bf16_ops", "f32_ops" }
local prefix_fields = { "pages", "bytes", "limit", "reused", "added", "evicted", "read", "written",
    "removed", "damaged", "failed", "unwritten" }
local cost_fields = { "weight_bytes", "kv_bytes", "int8_ops", "bf16_ops", "f32_ops" }

local attention_fields = { "threads", "read", "ops" }
local plan_fields = { "weights", "cache", "cache_page", "session", "buffers", "present", "available" }

local function fields(raw, names)
    local out = {}
    for _, name in ipairs(names) do
        out[name] = raw[name]
    end
    return out
end

local function config(ptr)
    local raw = native.sized "mm2_config"
    lib.mm2_model_config(ptr, raw)
    local out = fields(raw, config_fields)
    out.use_qk_norm = raw.use_qk_norm ~= 0
    out.use_routing_bias = raw.use_routing_bias ~= 0
    return out
end

local function new(object)
    return Model.hold(object, { config = config(object), grammars = {} })
end

function Model:describe()
    return ("%s, %.2f B parameters, %s"):format(self:info "path", self.parameters / 1e9,
        self:info "quantization")
end

--- See mm.load.
function Model.load(path, options)
    options = args.known(options, "mm.load", known)
    local o = native.sized "mm2_model_options"
    lib.mm2_model_options_init(o)
    if options.threads ~= nil then
        o.threads = args.positive(options.threads, "mm.load: threads")
    end
    if options.isa ~= nil then
        o.isa = isa_levels[options.isa] or raise(("mm.load: isa must be 'auto', 'ref', 'avx2', "
            .. "'avx512', 'amx' or 'blas', not %s"):format(args.show(options.isa)))
    end
    if options.precision ~= nil then
        o.precision = precisions[options.precision] or raise(("mm.load: precision must be 'fast' or "
            .. "'exact', not %s"):format(args.show(options.precision)))
    end
    o.flags = (args.flag(options.writable, false, "mm.load: writable") and lib.MM2_WRITABLE or 0)
        + (args.flag(options.mapped, true, "mm.load: mapped") and 0 or lib.MM2_IN_MEMORY)
    if options.prefix_cache ~= nil then
        o.prefix_cache = args.bytes(options.prefix_cache, "mm.load: prefix_cache")
    end
    if options.prefix_folder ~= nil then
        o.prefix_folder = args.text(options.prefix_folder, "mm.load: prefix_folder")
    end
    if options.prefix_disk ~= nil then
        o.prefix_disk = args.bytes(options.prefix_disk, "mm.load: prefix_disk")
    end
    local out = ffi.new "mm2_model *[1]"
    if lib.mm2_model_open(out, args.text(path, "the path"), o) < 0 then
        return nil, native.message()
    end
    return new(out[0])
end

--- See mm.attach.
function Model.attach(address)
    if type(address) ~= "number" or address < 1 then
        raise(("an address is a number from model:address(), not %s"):format(args.show(address)))
    end
    local object = ffi.cast("mm2_model *", ffi.cast("intptr_t", address))
    lib.mm2_model_retain(object)
    return new(object)
end

--- A number that another Lua state of this process (a LÖVE or luv thread) can give to mm.attach, while
--- this model is open.
function Model:address()
    return tonumber(ffi.cast("intptr_t", self:live()))
end

--- A fact as text, or nil: "path", "format", "architecture", "name", "license", "quantization",
--- "isa", "precision", "chat_template". Without a key: a table of all.
function Model:info(key)
    if key == nil then
        local facts, index = {}, 0
        local name = lib.mm2_model_info_key(index)
        while name ~= nil do
            facts[ffi.string(name)] = native.text(lib.mm2_model_info(self:live(), name))
            index = index + 1
            name = lib.mm2_model_info_key(index)
        end
        return facts
    end
    return native.text(lib.mm2_model_info(self:live(), args.text(key, "the key")))
end

--- Ids that end a generation, ascending, as a table: what the files name, and the end of a turn.
function Model:end_tokens()
    local count = lib.mm2_model_end_tokens(self:live(), nil, 0)
    local ids, out = ffi.new("int32_t[?]", count), {}
    lib.mm2_model_end_tokens(self:live(), ids, count)
    for i = 1, count do
        out[i] = ids[i - 1]
    end
    return out
end

--- A tensor as it lies in the file: a view. nil and a sentence if there is none of this name.
function Model:tensor(name)
    local raw = ffi.new "mm2_tensor"
    if lib.mm2_model_tensor(self:live(), args.text(name, "the name"), raw) < 0 then
        return nil, native.message()
    end
    return Tensor.view(raw, self)
end

--- for name, tensor in model:tensors(): in file order.
function Model:tensors()
    local index, count = -1, lib.mm2_model_tensor_count(self:live())
    return function()
        index = index + 1
        if index < count then
            local name = native.text(lib.mm2_model_tensor_name(self:live(), index))
            return name, (assert(self:tensor(name)))
        end
    end
end

--- A weight, of all the tensors that it lies in: a table with shape (decoded), dtype (of its codes:
--- "f8_e4m3", "f4_16", "i4", ...), nbytes (of codes, scales and zero points) and is_part (the tensor is
--- part of another weight, and described alone). nil and a sentence if there is none of this name, or
--- if what stands beside it does not fit.
function Model:weight_info(name)
    local raw = ffi.new "mm2_tensor"
    if lib.mm2_model_weight_info(self:live(), args.text(name, "the name"), raw) < 0 then
        return nil, native.message()
    end
    local shape = {}
    for axis = 1, raw.ndim do
        shape[axis] = tonumber(raw.shape[axis - 1])
    end
    return {
        shape = shape,
        dtype = native.text(lib.mm2_dtype_name(raw.dtype)),
        nbytes = tonumber(raw.nbytes),
        is_part = bit.band(raw.flags, lib.MM2_PART) ~= 0,
    }
end

--- Rows [first, first + count) of a weight, seen as a matrix of its last dimension, decoded to f32
--- with scales and zero points applied. `name`: that of its codes, or "X.weight" for "X.weight_packed".
--- Default: all rows.
function Model:weight(name, first, count)
    local info, message = self:weight_info(name)
    if not info then
        return nil, message
    end
    local shape = info.shape
    local columns, rows = shape[#shape] or 1, 1
    for axis = 1, #shape - 1 do
        rows = rows * shape[axis]
    end
    first = first == nil and 0 or args.int(first, "the first row")
    count = count == nil and rows - first or args.int(count, "the number of rows")
    if first < 0 or count < 0 or first + count > rows then
        raise(("rows %d..%d are outside of %s, which has %d"):format(first, first + count - 1, name,
            rows))
    end
    local out = Tensor.new(lib.MM2_F32, { count, columns })
    check(lib.mm2_model_weight(self:live(), name, first, count, out:ptr(), #out))
    return out
end

--- Token ids of a prompt: a string (plain text), token ids (see args.ids), or a table of messages, with
--- the options of tokenizer:template.
function Model:prompt_ids(prompt, n, options)
    local ids, count
    if type(prompt) == "string" or messages.is(prompt) then
        self:live()
        local tokenizer = self.tokenizer
        if not tokenizer then
            raise(self.no_tokenizer)
        end
        if type(prompt) == "string" then
            ids, count = tokenizer:encode(prompt)
        else
            ids, count = tokenizer:encode_chat(prompt, options)
        end
    else
        ids, count = args.ids(prompt, n)
    end
    if count == 0 then
        raise("the prompt is empty")
    end
    return ids, count
end

--- A new session; nil and a sentence if there is no memory for it. Options: context (positions, the
--- smaller of 8192 and the model's), kv_dtype ("bf16": queries and attention weights are then rounded
--- to it too; "f32", which is the default of a model of precision "exact"; or "int8": codes with a scale
--- for each head and position, half the memory of bf16), chunk (prompt tokens that go through the
--- layers together, 1024).
function Model:session(options)
    return Session.new(self, options, "model:session")
end

--- The session that session:save(path) wrote, which goes on with the same bits. Takes milliseconds, for the
--- file is mapped; what the session writes stays in this process. nil and a sentence if it cannot go on
--- here. Options: mapped (true; false reads the file into memory, for network file systems and files that
--- others may write to), context (positions, as many as it had), kv_dtype (to refuse a file with
--- another), chunk as in model:session. Keys and values are held against their checksums when a run
--- first needs them: run raises if they are damaged, and says what rewind can keep.
function Model:restore(path, options)
    return Session.restore(self, path, options, "model:restore")
end

--- What the cache of prefixes has and did, a table of numbers, all 0 without the option prefix_cache of
--- mm.load: pages (in memory), bytes (of those that no session holds), limit (of these), reused (positions
--- that sessions took, ever), added, evicted, read, written (pages), removed (files, for want of room),
--- damaged (files), failed, unwritten (pages that could not be, and are still to be written), and problem:
--- why the last page could not be written, nil if it was.
function Model:prefix_stats()
    local raw, out = native.sized "mm2_prefix_stats", {}
    check(lib.mm2_model_prefix_stats(self:live(), raw))
    for _, name in ipairs(prefix_fields) do
        out[name] = tonumber(raw[name])
    end
    local problem = ffi.string(raw.problem)
    out.problem = problem ~= "" and problem or nil
    return out
end

--- A batch of sessions (a table, or none yet) to be advanced together. Options: rows (256, 1..4096), the
--- tokens that go through the layers together: fewer of them, and members that decode wait less for
--- others' prompts; more, and prompts use the machine better.
function Model:batch(sessions, options)
    return Batch.new(self, sessions, options, "model:batch")
end

--- A conversation on a session of its own: see chat.lua. Options: system (its first message), those of
--- model:session, and defaults for its generations. nil and a sentence if there is no memory for it.
function Model:chat(options)
    return Chat.new(self, options)
end

--- A sampler for this model; see sampling.lua for the options.
function Model:sampler(options)
    return Sampler.new(self, args.known(options, "model:sampler", Sampler.known), "model:sampler")
end

-- A session of its own for one prompt, fed.
local function session_for(self, prompt, options, where)
    args.known(options, where, Session.known)
    local ids, count = self:prompt_ids(prompt)
    return Session.for_prompt(self, ids, count, 0, options, where)
end

local function start_stream(self, prompt, options, where)
    local request = Request.new(self, prompt, options, where, nil, Session.known)
    return Stream.new(Session.for_request(self, request), request, true)
end

local MOST_ANSWERS = 4096 -- members that a batch can have

-- What was made; raises the message where nothing was.
local function made(object, message)
    return object or raise(message)
end

-- Answers of one prompt, made together, behind forks of it unless each has hooks of its own.
local function answers(self, prompt, options, where)
    local n, own, requests, sessions = args.positive(options.n, where .. ": n"), {}, {}, {}
    if n > MOST_ANSWERS then
        raise(("%s: n must be at most %d, not %d"):format(where, MOST_ANSWERS, n))
    end
    if messages.are_prompts(prompt) then
        raise(where .. ": n is for one prompt; of several, give each as often as you want")
    end
    for name, value in pairs(options) do
        own[name] = value
    end
    own.n = nil
    for i = 1, n do
        requests[i] = Request.new(self, prompt, own, where, nil, Session.known)
        own.seed = requests[i].sampler.seed + 1
    end
    local batch = made(self:batch())
    local texts, infos = {}, {}
    local ok, message = pcall(function()
        local first, streams = requests[1], {}
        local shared = own.hooks and 0 or first.count - 1
        if shared > 0 then
            local trunk = Session.for_prompt(self, first.prompt, shared,
                first.count - shared + first.most, own, where)
            sessions[n] = trunk
            while not trunk:run(trace.SLICE_US / 1000) do end
            for i = 1, n do
                sessions[i] = i == n and trunk or made(trunk:fork())
                sessions[i]:feed(first.prompt + shared, first.count - shared)
            end
        else
            for i, request in ipairs(requests) do
                sessions[i] = Session.for_request(self, request)
            end
        end
        for i, request in ipairs(requests) do
            batch:add(sessions[i])
            streams[i] = Stream.new(sessions[i], request, true)
        end
        for i, stream in ipairs(streams) do
            texts[i], infos[i] = stream:finish()
        end
    end)
    batch:close()
    if not ok then
        for _, session in pairs(sessions) do
            session:close()
        end
        error(message, 0)
    end
    return texts, infos
end

--- A stream that goes on with a prompt; see request.lua for the options. Those of model:session are taken
--- too; context is, if not given, what the prompt and max_new_tokens need.
function Model:stream(prompt, options)
    return start_stream(self, prompt, options, "model:stream")
end

--- Text that goes on with a prompt, and info: tokens, finish_reason, seed, thinking, logprobs. The
--- options are those of model:stream. After messages the text is the answer alone. Of a table of prompts
--- a table of texts and one of infos, made together: see batch:generate. With the option n, one prompt is
--- evaluated once and answered n times, likewise: answer i is that of seed + i - 1.
function Model:generate(prompt, options)
    if type(options) == "table" and options.n ~= nil then
        return answers(self, prompt, options, "model:generate")
    end
    if messages.are_prompts(prompt) then
        local batch = made(self:batch())
        local texts, infos = batch:generate(prompt, options, "model:generate")
        batch:close()
        return texts, infos
    end
    return start_stream(self, prompt, options, "model:generate"):finish()
end

--- for tap in model:trace(prompt, points, layers): every activation at these points and layers (names
--- or numbers, one or a list; nil: all) while the prompt is evaluated. Options: those of model:session.
function Model:trace(prompt, points, layers, options)
    local switches = trace.switches(self, points, layers)
    local session = session_for(self, prompt, options, "model:trace")
    return trace.iterate(session, switches, function()
        session:close()
    end)
end

--- Evaluates a prompt and calls hooks { { point, layer, function(tensor, tap) }, ... } on the way
--- (layer may be left out: all). Returns the logits after its last token, a copy: f32 [vocab_size].
--- Options: those of model:session.
function Model:run_with_hooks(prompt, hooks, options)
    hooks = trace.hooks(self, hooks)
    local session = session_for(self, prompt, options, "model:run_with_hooks")
    for tap in trace.iterate(session, hooks) do
        hooks:call(tap)
    end
    local logits = session:logits():copy()
    session:close()
    return logits
end

--- Logits after a prompt, a copy: f32 [vocab_size]; or with rows = "all" those of every token,
--- f32 [tokens, vocab_size]. Options: those of model:session.
function Model:logits(prompt, rows, options)
    if rows == nil or rows == "last" then
        return self:run_with_hooks(prompt, {}, options)
    elseif rows ~= "all" then
        raise(("rows must be 'last' or 'all', not %s"):format(args.show(rows)))
    end
    local session = session_for(self, prompt, options, "model:logits")
    local vocab = self.config.vocab_size
    local out = Tensor.new(lib.MM2_F32, { session.length, vocab })
    for tap in trace.iterate(session, trace.switches(self, "logits")) do
        ffi.copy(out:ptr() + tap.first * vocab, tap.tensor:ptr(), tap.tensor.nbytes)
    end
    session:close()
    return out
end

--- Measures what this machine gives the model's threads, in about half a second. A table: threads,
--- plain_read and best_read (bytes per second of memory, without and with prefetch), int8_ops, bf16_ops
--- and f32_ops (operations per second, 2 a multiply-add). Meaningless while the model runs elsewhere.
function Model:limits()
    local raw = native.sized "mm2_limits"
    check(lib.mm2_model_limits(self:live(), raw))
    return fields(raw, limit_fields)
end

--- What it takes to evaluate `tokens` tokens (1) together behind `depth` earlier ones (0), with a cache
--- of kv_dtype, as in model:session: two tables, of all layers and of the rest (embedding rows, final
--- norm, output head for the last token). Fields: weight_bytes, kv_bytes, int8_ops, bf16_ops, f32_ops.
function Model:cost(tokens, depth, kv_dtype)
    tokens = tokens == nil and 1 or args.int(tokens, "model:cost: tokens")
    depth = depth == nil and 0 or args.int(depth, "model:cost: depth")
    local layers, rest = native.sized "mm2_cost", native.sized "mm2_cost"
    check(lib.mm2_model_cost(self:live(), tokens, depth, args.kv_dtype(kv_dtype, self, "model:cost"), layers,
        rest))
    return fields(layers, cost_fields), fields(rest, cost_fields)
end

--- Measures attention to a cache of kv_dtype ("bf16", "f32" or "int8"), in a third of a second: threads,
--- read (bytes per second of keys and values in memory that one token attends to), ops (operations per
--- second of rows of a prompt, 2 a multiply-add).
function Model:attention_limits(kv_dtype)
    local raw = native.sized "mm2_attention"
    kv_dtype = args.kv_dtype(kv_dtype, self, "model:attention_limits")
    check(lib.mm2_model_attention(self:live(), kv_dtype, raw))
    return fields(raw, attention_fields)
end

--- What sessions would take, before anything is allocated or read. Options: those of model:session, and
--- sessions (1), depths (a table of positions; default: 0 and the end of the context). A table of bytes:
--- weights; cache (keys and values of all sessions' whole contexts) and cache_page (of 256 positions of
--- one, by which it grows); session (tokens and logits of all); buffers (of a chunk of rows, once for
--- sessions that run in turns or in a batch); needed (all of it together), present (memory of the
--- machine or its control group), available (of it, now; pages of mapped files can be had), fits; and
--- context, kv_dtype, chunk, sessions, and at_depth: a table of { depth, weight_bytes, kv_bytes }, what
--- a token must read there. Divide model:limits().best_read by their sum: no more tokens a second than
--- that. `minimax2 plan` predicts times too.
function Model:plan(options)
    options = args.known(options, "model:plan", Session.known, { sessions = true, depths = true })
    local sessions = options.sessions == nil and 1 or args.positive(options.sessions, "model:plan: sessions")
    local depths = options.depths
    if depths ~= nil and type(depths) ~= "table" then
        raise("model:plan: depths must be a table, not " .. args.show(depths))
    end
    for i, depth in ipairs(depths or {}) do
        args.int(depth, ("model:plan: depth %d"):format(i))
    end
    local raw = native.sized "mm2_plan"
    check(lib.mm2_model_plan(self:live(), Session.options(self, options, "model:plan"), raw))
    local out = { context = raw.context, chunk = raw.chunk,
        kv_dtype = native.text(lib.mm2_dtype_name(raw.kv_dtype)) }
    for _, name in ipairs(plan_fields) do
        out[name] = tonumber(raw[name])
    end
    out.sessions = sessions
    out.cache = out.sessions * out.cache
    out.session = out.sessions * out.session
    out.needed = out.weights + out.cache + out.session + out.buffers
    out.fits = out.needed <= out.present
    out.at_depth = {}
    for i, depth in ipairs(depths or { 0, out.context - 1 }) do
        local layers, rest = self:cost(1, depth, out.kv_dtype)
        out.at_depth[i] = { depth = depth, weight_bytes = layers.weight_bytes + rest.weight_bytes,
            kv_bytes = layers.kv_bytes }
    end
    return out
end

-- Made when first asked for.
function properties.tokenizer(self)
    local tokenizer, message = Tokenizer.of(self)
    rawset(self, "tokenizer", tokenizer)
    rawset(self, "no_tokenizer", message)
    return tokenizer
end

function properties.threads(self)
    return lib.mm2_model_threads(self:live())
end

function properties.nbytes(self)
    return tonumber(lib.mm2_model_bytes(self:live()))
end

function properties.parameters(self)
    return tonumber(lib.mm2_model_parameters(self:live()))
end

return Model
