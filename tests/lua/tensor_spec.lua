local ffi = require "ffi"
local support = require "support"

local model = support.model

describe("a tensor", function()
    local session, logits

    before_each(function()
        session = assert(model:session())
        session:feed(support.prompt):run()
        logits = session:logits()
    end)

    it("is indexed from 0, in place", function()
        assert.equal("f32", logits.dtype)
        assert.equal(model.config.vocab_size, #logits)
        assert.equal(1, logits.ndim)
        assert.equal(#logits * 4, logits.nbytes)
        local pointer = logits:ptr()
        assert.equal("ctype<float *>", tostring(ffi.typeof(pointer)))
        assert.equal(pointer[3], logits[3])
        logits[3] = 0.5
        assert.equal(0.5, pointer[3])
        assert.equal(0.5, session:logits()[3])
        assert.equal(("f32 tensor [%d]"):format(#logits), tostring(logits))
    end)

    it("takes one index for each dimension", function()
        local all = model:logits({ 1, 2, 3 }, "all")
        local vocab = model.config.vocab_size
        assert.same({ vocab, 1 }, all.strides)
        assert.equal(all[2 * vocab + 7], all:get(2, 7))
        all:set(1.25, 1, 5)
        assert.equal(1.25, all[vocab + 5])
    end)

    it("refuses indices outside, on every side", function()
        local last = #logits - 1
        assert.equal(logits:ptr()[last], logits[last])
        for _, index in ipairs { -1, last + 1, 0.5, 0 / 0, 1 / 0, 2 ^ 53 } do
            assert.matches("is outside 0%.%.", support.failure(function() return logits[index] end))
            assert.matches("is outside 0%.%.", support.failure(function() logits[index] = 1 end))
        end
        assert.matches("2 indices for a tensor of 1", support.failure(logits.get, logits, 0, 0))
        local all = model:logits({ 1, 2 }, "all")
        assert.matches("index 2 of dimension 0 is outside 0..1", support.failure(all.get, all, 2, 0),
            1, true)
    end)

    it("refuses writes that it cannot do", function()
        local weight = model:tensor "model.norm.weight"
        assert.equal("this tensor is read-only", support.failure(function() weight[0] = 1 end))
        assert.matches("read%-only", support.failure(function() session:tokens()[0] = 1 end))
        assert.matches("numbers, not string", support.failure(function() logits[0] = "1" end))
        assert.matches("no field 'shape'", support.failure(function() logits.shape = {} end))
        local copy = session:tokens():copy()
        assert.matches("not an integer", support.failure(function() copy[0] = 1.5 end))
        assert.matches("not an integer", support.failure(function() copy[0] = 2 ^ 31 end))
        local other = weight:copy()
        assert.matches("of a bf16 tensor cannot be set", support.failure(function() other[0] = 1 end))
    end)

    it("decodes what it cannot read in place", function()
        local norm = model:tensor "model.norm.weight"
        local decoded = norm:f32()
        assert.equal("bf16", norm.dtype)
        assert.equal("f32", decoded.dtype)
        local words = norm:ptr()
        for i = 0, #norm - 1 do
            local bits = ffi.new("uint32_t[1]", words[i] * 65536)
            local value = ffi.cast("float *", bits)[0]
            assert.equal(value, norm[i])
            assert.equal(value, decoded[i])
        end
    end)

    it("gives its bytes, copied or borrowed", function()
        local bytes = logits:bytes()
        assert.equal(logits.nbytes, #bytes)
        local buffer = logits:buffer()
        assert.equal(#bytes, #buffer)
        logits[0] = logits[0] + 1
        assert.are_not.equal(bytes, logits:bytes())
        assert.equal(logits:bytes(), buffer:tostring())
    end)

    it("copies into memory of its own", function()
        local copy = logits:copy()
        assert.equal(logits:bytes(), copy:bytes())
        logits[1] = 77
        assert.are_not.equal(77, copy[1])
        copy[2] = 78
        assert.are_not.equal(78, logits[2])
        local weight = model:tensor("model.embed_tokens.weight"):copy()
        assert.is_false(weight.readonly)
        assert.equal(model:tensor("model.embed_tokens.weight"):bytes(), weight:bytes())
    end)

    it("reads strided views", function()
        local Tensor = require "minimax2.tensor"
        local native = require "minimax2.native"
        local memory = Tensor.new(native.lib.MM2_F32, { 3, 4 })
        for i = 0, 11 do
            memory[i] = i
        end
        local raw = ffi.new("mm2_tensor", memory._raw) -- the transpose
        raw.shape[0], raw.shape[1] = 4, 3
        raw.strides[0], raw.strides[1] = 1, 4
        local transposed = Tensor.view(raw, { cell = { open = ffi.new("int32_t[1]", 1) }, memory = memory })
        assert.equal(9, transposed:get(1, 2))
        assert.equal(4, transposed[1])
        assert.equal(5, transposed:copy()[4])
        assert.equal(5, transposed:f32()[4])
        transposed[4] = 50
        assert.equal(50, memory:get(1, 1))
        assert.matches("not contiguous", support.failure(transposed.bytes, transposed))
    end)
end)
