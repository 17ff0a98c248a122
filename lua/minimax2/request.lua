--- Request: what one generation is asked for, all of it checked before anything is fed, so that what is
--- refused has changed nothing. The options of model:generate, model:stream, session:generate, ... are
--- those of mm.sampler and
---   max_new_tokens    how many tokens at most, 1024; a full context may end it earlier
---   stop              a string or a list: the text ends before the first of them
---   mask              made by mm.mask; or a function(tokens) that returns one, or nil, for each token
---   logits_processor  a function(tokens, logits) that edits an f32 tensor [vocab_size], a copy of the
---                     logits, before each choice
---   top_logprobs      n > 0: info.logprobs[i] = { id=, logprob=, top = { { id=, logprob= }, ... } }, by
---                     the model's own logits
---   hooks             { { point, layer, function(tensor, tap) }, ... }, called at these activations;
---                     without the layer: at all
---   thinking          whether the text begins inside <think>; nil: as the prompt has it; false closes that
---                     block in a prompt of messages, so that the model answers at once; a number: closes
---                     it after so many tokens
---   tools             that a prompt of messages declares, see tokenizer:render; stream:calls() has the
---                     calls of them, whose results are messages of the role "tool"
---   tool_choice       "auto"; "none": calls are forbidden; "required": behind the thinking a call is opened;
---                     the name of a tool: a call of that one
---   keep_thinking     true: of all turns of a prompt of messages
---   speculate         true: tokens that followed an earlier occurrence of the last ones are evaluated
---                     together with them, where that is expected to win; the same text, sooner. A number:
---                     so many at most, up to 15; false, the default: never. info.proposed and
---                     info.accepted count them; not info.speculating: nothing is proposed
---   choices, regex, json_schema   what form the answer must have, see grammar.lua; one of them
---   yield             true: stream:next() yields between time slices; for use in coroutines

local native = require "minimax2.native"
local args = require "minimax2.args"
local Grammar = require "minimax2.grammar"
local messages = require "minimax2.messages"
local tools_of = require "minimax2.tools"
local trace = require "minimax2.trace"
local Reply = require "minimax2.reply"
local Sampler = require "minimax2.sampling"

local lib, raise = native.lib, native.raise

local Request = {}

local DEFAULT_TOKENS = 1024

--- The names of the options, beside those of the sampler.
Request.known = {
    max_new_tokens = true, stop = true, mask = true, logits_processor = true, top_logprobs = true,
    hooks = true, thinking = true, tools = true, tool_choice = true, keep_thinking = true, yield = true,
    speculate = true,
}
for name in pairs(Grammar.known) do
    Request.known[name] = true
end

local function stop_list(stop, where)
    local list = type(stop) == "table" and stop or { stop }
    for key, text in pairs(list) do
        if type(key) ~= "number" or type(text) ~= "string" or text == "" then
            raise(("%s: stop must be a string or a list of strings, none of them empty, not %s"):format(
                where, args.show(type(key) == "number" and text or stop)))
        end
    end
    return list
end

local function processor_of(value, where)
    if value ~= nil and type(value) ~= "function" then
        raise(("%s: logits_processor must be a function(tokens, logits), not %s"):format(where,
            args.show(value)))
    end
    return value
end

local function proposals(value, where)
    if value == nil or type(value) == "boolean" then
        return value and lib.MM2_DRAFT_MOST or 0
    end
    return args.count(value, nil, lib.MM2_DRAFT_MOST, where .. ": speculate")
end

--- A request for a prompt, nil for none. turn: a function that makes the ids of a chat turn, given whether
--- it thinks. more: names of further options, of a call that makes a session and so needs a prompt.
--- Fields: options, where (as given), prompt and count (ids to feed, or nil), sampler, reply, most
--- (tokens), mask, processor, top, hooks (made by trace.hooks, or nil), constraint (or nil), thinks, yields.
function Request.new(model, prompt, options, where, turn, more)
    options = args.known(options, where, Request.known, Sampler.known, more or {})
    if more and prompt == nil then
        raise(where .. ": the prompt must be a string, token ids or a table of messages, not nil")
    end
    local vocab, is_messages = model.config.vocab_size, messages.is(prompt)
    local answers = turn ~= nil or is_messages
    local self = {
        options = options,
        where = where,
        most = args.count(options.max_new_tokens, DEFAULT_TOKENS, nil, where .. ": max_new_tokens"),
        top = args.count(options.top_logprobs, 0, vocab, where .. ": top_logprobs"),
        mask = type(options.mask) == "function" and options.mask or args.mask(options.mask, vocab, where),
        processor = processor_of(options.logits_processor, where),
        hooks = options.hooks ~= nil and trace.hooks(model, options.hooks) or nil,
        speculate = proposals(options.speculate, where),
        yields = args.flag(options.yield, false, where .. ": yield"),
    }
    local keep = args.flag(options.keep_thinking, false, where .. ": keep_thinking")
    local thinks, budget = messages.thinking(options.thinking, answers, where)
    self.thinks = thinks
    local tools = options.tools ~= nil and messages.json(options.tools, where .. ": tools") or nil
    if tools and prompt ~= nil and not is_messages then
        raise(where .. ": tools are for prompts of messages; a prompt that is a text or ids declares its own")
    end
    local stops = stop_list(options.stop, where)
    local grammar = Grammar.of(model, options, where)
    local call, bias = tools_of.choice(model, options, answers or prompt == nil, where)
    local sampler, message = Sampler.new(model, bias and setmetatable({ bias = bias }, { __index = options })
        or options, where)
    if not sampler then
        raise(("%s: %s"):format(where, message))
    end
    self.sampler = sampler
    if turn then
        self.prompt, self.count = turn(thinks)
    elseif prompt ~= nil then
        self.prompt, self.count = model:prompt_ids(prompt, nil, is_messages and
            { tools = tools, thinking = thinks, keep_thinking = keep } or nil)
    end
    local start = thinks and "thinking" or answers and "answer" or "text"
    self.reply = Reply.new(model, self.most, stops, start, tools, budget, call)
    self.constraint = grammar and grammar:constraint(start)
    return self
end

return Request
