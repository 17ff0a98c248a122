"""One engine in a process of its own, for compare.py: python engine.py minimax2 or llama.cpp.

Reads one JSON object a line from standard input, answers each with one on standard output:
    {"open": PATH, "threads": N, ...}            facts about engine and model
    {"depth": D, "tokens": N, "step": S,
     "context": C, "every": true or false, ...}  {"seconds", "logits", "peak"}
The second evaluates N tokens, S at a time, behind D others; only the N are timed. every: all rows
must pass through all layers, not only those whose logits are wanted. The logits are the first
SAMPLE of the last token. The peak of resident memory is that of the process, in bytes;
pages of the mapped file count as far as they were touched. Further keys are settings of the engine,
see its class. What fails answers {"error": sentence}.
"""

import json
import os
import sys
import time

SAMPLE = 256


def token_ids(first, count, vocabulary):
    """Ids for these positions of the timeline: any will do, but all engines get the same."""
    return [7919 * i % vocabulary for i in range(first, first + count)]


def peak_memory():
    """Largest resident set of this process so far, in bytes."""
    with open("/proc/self/status", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["VmHWM"].split()[0]) * 1024


class Minimax2:
    """Settings: open isa, NAME or None; run chunk, tokens, and kv_dtype, NAME, or None. All rows
    pass all layers."""

    def open(self, path, threads, isa=None):
        import minimax2
        self.model = minimax2.load(path, threads=threads, isa=isa)
        self.made = self.session = None
        config = self.model.config
        return {"version": minimax2.__version__, "cpu": minimax2.cpu(),
                "isa": self.model.info("isa"), "threads": self.model.threads,
                "layers": config.num_hidden_layers, "experts": config.num_local_experts,
                "vocabulary": config.vocab_size}

    def run(self, depth, tokens, step, context, every, chunk=None, kv_dtype=None):
        if self.made != (context, chunk, kv_dtype):
            if self.session:
                self.session.close()
            self.session = self.model.session(context, kv_dtype, chunk)
            self.made = context, chunk, kv_dtype
        session, vocabulary = self.session, self.model.config.vocab_size
        session.rewind(min(depth, session.length))
        if session.length < depth:
            session.feed(token_ids(session.length, depth - session.length, vocabulary)).run()
        ids = token_ids(depth, tokens, vocabulary)
        start = time.perf_counter()
        for i in range(0, tokens, step):
            session.feed(ids[i:i + step]).run()
        return time.perf_counter() - start

    def logits(self):
        return memoryview(self.session.logits)[:SAMPLE].tolist()


class LlamaCpp:
    """llama.cpp through the C functions of llama-cpp-python; its Python classes take no part.

    Settings: open repack, whether weights may be copied into layouts of its own; run ubatch, tokens
    that go through the layers together; kv, type of the KV cache. Flash attention is on. f16 is of
    the same size as minimax2's bf16, which llama.cpp has too but serves more slowly (on AMD Zen 5
    by a quarter at 512 tokens of prompt, by a third at decode behind 4,096). Logits are asked for
    the last token of a step only, as minimax2 computes them; then the last layer computes little
    more than that row. With `every` they are asked for all tokens.
    """

    BATCH = 2048  # tokens of one llama_decode, unless a step is longer

    def open(self, path, threads, repack=True):
        import llama_cpp
        self.lib = lib = llama_cpp
        self.complaint = ""
        self.log = lib.llama_log_callback(self._log)
        lib.llama_log_set(self.log, None)
        lib.llama_backend_init()
        params = lib.llama_model_default_params()
        params.use_extra_bufts = repack
        self.model = lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path}: {self.complaint}")
        self.vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        self.threads = threads
        self.made = self.context = self.batch = None
        return {"version": lib.__version__, "features": lib.llama_print_system_info().decode()}

    def _log(self, level, text, _):
        if level == 4:  # an error
            self.complaint = text.decode(errors="replace").strip()

    def run(self, depth, tokens, step, context, every, ubatch=512, kv="f16"):
        size = min(context, max(step, self.BATCH))
        if self.made != (context, size, every, ubatch, kv):
            self._make_context(context, size, every, ubatch, kv)
        lib = self.lib
        memory = lib.llama_get_memory(self.context)
        lib.llama_memory_seq_rm(memory, 0, depth, -1)
        held = lib.llama_memory_seq_pos_max(memory, 0) + 1
        for first in range(held, depth, size):
            self._decode(first, token_ids(first, min(size, depth - first), self.vocabulary))
        ids = token_ids(depth, tokens, self.vocabulary)
        start = time.perf_counter()
        for i in range(0, tokens, step):
            self._decode(depth + i, ids[i:i + step])
        return time.perf_counter() - start

    def logits(self):
        count = min(SAMPLE, self.vocabulary)
        return self.lib.llama_get_logits_ith(self.context, -1)[:count]

    def _make_context(self, context, size, every, ubatch, kv):
        lib = self.lib
        if self.context:
            lib.llama_batch_free(self.batch)
            lib.llama_free(self.context)
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, size, ubatch
        params.n_outputs_max = size if every else 1
        params.n_threads = params.n_threads_batch = self.threads
        params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.type_k = params.type_v = getattr(lib, f"GGML_TYPE_{kv.upper()}")
        self.context = lib.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError(f"llama.cpp makes no context: {self.complaint}")
        self.batch = lib.llama_batch_init(size, 0, 1)
        self.every = every
        self.made = context, size, every, ubatch, kv

    def _decode(self, first, ids):
        batch = self.batch
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i] = token
            batch.pos[i] = first + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = self.every or i == len(ids) - 1
        status = self.lib.llama_decode(self.context, batch)
        if status:
            raise RuntimeError(f"llama_decode says {status}: {self.complaint}")
        self.lib.llama_synchronize(self.context)


ENGINES = {"minimax2": Minimax2, "llama.cpp": LlamaCpp}


def main():
    engine = ENGINES[sys.argv[1]]()
    # The answers alone go to standard output, whatever a library prints.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "open" in request:
                answer = engine.open(request.pop("open"), **request)
            else:
                answer = {"seconds": engine.run(**request), "logits": engine.logits(),
                          "peak": peak_memory()}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
