/* minimax2.h - run MiniMax-M2 models (M2, M2.1, M2.5, M2.7) on CPUs from a script.
 *
 * The whole contract is in this file, in the order in which data flows. Preprocessed, it is the
 * cdef of the Python (cffi) and Lua (LuaJIT FFI) bindings, so what you read here is what every
 * language calls.
 *
 * The mental model, four nouns:
 *
 *     model      an opened checkpoint: weights mapped read-only as they were downloaded, tokenizer,
 *                thread pool. Immutable, counted, shared by any number of threads and sessions.
 *     session    one timeline of tokens with its key/value (KV) cache. Feed it tokens, run it, look
 *                at the logits. A fork is a second session that shares all that came before.
 *     batch      several sessions of one model advanced through the weights together, with the same
 *                bits as alone.
 *     tap        a stop at an activation. The run returns, you look at the tensor or write into it,
 *                and run again.
 *
 * The library pulls, it never pushes: there are no callbacks. mm2_session_run() works until it is
 * done, its time budget is spent or a tap is reached, and says which. Calling it again resumes
 * where it stopped.
 *
 *     mm2_model *m;  mm2_session *s;  mm2_sampler *p;  int32_t ids[64], n, id;
 *     if (mm2_model_open(&m, "MiniMax-M2.5", NULL)) { puts(mm2_error()); return 1; }
 *     mm2_session_new(&s, m, NULL);
 *     mm2_sampler_new(&p, m, NULL);
 *     n = mm2_tokenizer_encode(mm2_model_tokenizer(m), "Once upon", 9, 0, ids, 64);
 *     mm2_session_feed(s, ids, n);
 *     while (mm2_session_run(s, 0, NULL) == MM2_OK && (id = mm2_sampler_next(p, s, NULL)) >= 0)
 *         mm2_session_feed(s, &id, 1);
 *
 * Errors. A function that can fail returns a negative mm2_status (or a negative count); mm2_error()
 * then holds a sentence: which file, which tensor, what was expected, what was found, what to do.
 * Nothing is lost: the object is as it was before the call, unless its comment says otherwise. The
 * library never aborts, exits, prints, installs signal handlers or changes the process's
 * floating-point state.
 *
 * Ownership. *Owned*: you must release it. *Borrowed until X*: do not release it, do not use it
 * after X. *Copied*: the library keeps no reference to what you passed.
 *
 * Threads. A model and a tokenizer may be used by any number of threads at once. A session, a batch
 * or a sampler is used by one thread at a time; a second one gets MM2_E_BUSY. After fork() the
 * child may go on using everything; what another thread of the parent was evaluating at that moment
 * is dropped, so such a session stands at the last position that was evaluated, without logits. A
 * call that runs a session or a batch may take 256 KB of its thread's stack.
 *
 * Same bits. The logits of a token do not depend on thread count, batch mates, chunking of the
 * prompt, time budgets, forks, rewinds, saving and restoring, shared prefixes, the calling language
 * or the instruction-set level, blas excepted (numerics version MM2_NUMERICS).
 *
 * Sizes: int32_t for ids, counts and positions; int64_t for shapes and bytes. Structs that may grow
 * begin with `size`: set it to sizeof of the struct before any call sees it. An options struct is
 * then filled with its defaults by the matching _init function; a NULL options pointer means the
 * defaults. A program that was built with an older header, whose structs are smaller, goes on
 * working: fields it does not know keep their defaults, or are not written. */
#ifndef MINIMAX2_H
#define MINIMAX2_H

#ifndef MM2_CDEF
#include <stdint.h>
#pragma GCC visibility push(default)
#ifdef __cplusplus
extern "C" {
#endif
#endif

/* ----------------------------------------------------------------------------------------------
 * Library */

enum {
    MM2_ABI = 3,      /* of this header; must equal mm2_abi(), that of the library */
    MM2_NUMERICS = 3, /* changes only together with the golden hashes */
    MM2_MAX_DIMS = 4
};

typedef int32_t mm2_status;
enum {
    MM2_OK = 0,        /* done; run: caught up with everything that was fed */
    MM2_MORE = 1,      /* run: out of time or interrupted; call again to go on */
    MM2_TAP = 2,       /* run: stopped at an activation; call again to go on */
    MM2_READY = 3,     /* batch run: a member has caught up and has logits; call again to go on */
    MM2_E_ARG = -1,    /* an argument is out of range or NULL, or it is too early for this */
    MM2_E_NOMEM = -2,  /* not enough memory; the sentence says how much was needed */
    MM2_E_IO = -3,     /* a file cannot be opened, mapped or read */
    MM2_E_FORMAT = -4, /* a file is damaged, inconsistent or not of this family */
    MM2_E_FULL = -5,   /* the session's context is full */
    MM2_E_BUSY = -6,   /* the object is in use by another thread, or by a batch */
    MM2_E_UNSUPPORTED = -7, /* valid, but this build or machine cannot serve it */
    MM2_E_NUMERIC = -8      /* logits that are NaN, or leave no token to choose */
};

uint32_t mm2_abi(void);
const char *mm2_version(void); /* "0.1.0"; static */
/* The sentence of the last failure in the calling thread, "" if none. Borrowed until the thread's
 * next failing call. */
const char *mm2_error(void);
/* Processor and best instruction-set level: "avx512 (AMD EPYC), 2 cores", and " on 2 memory nodes"
 * where there are several. Static. */
const char *mm2_cpu(void);
/* Bytes of memory: of the machine, or what the process's control groups allow if that is less; and of
 * these what can be had now (address space counts too). Page cache, which the maps of model files
 * fill, can be had. INT64_MAX where the system does not say. */
int64_t mm2_memory_present(void);
int64_t mm2_memory_available(void);

/* ----------------------------------------------------------------------------------------------
 * Tensors: views on memory that something else owns */

/* mm2_tensor.dtype. Block formats are those of GGUF, one block after the other along the last
 * dimension. */
enum {
    MM2_F32 = 1,
    MM2_F16 = 2,
    MM2_BF16 = 3,
    MM2_F8_E4M3 = 4, /* no infinity, 0x7f and 0xff are NaN, largest 448 (e4m3fn) */
    MM2_I32 = 5,
    MM2_Q8_0 = 6,
    MM2_Q4_0 = 7,
    MM2_Q5_0 = 8,
    MM2_Q2_K = 9,
    MM2_Q3_K = 10,
    MM2_Q4_K = 11,
    MM2_Q5_K = 12,
    MM2_Q6_K = 13,
    MM2_IQ4_NL = 14,
    MM2_IQ4_XS = 15,
    MM2_Q4_1 = 16,
    MM2_Q5_1 = 17,
    MM2_IQ2_XXS = 18,
    MM2_IQ2_XS = 19,
    MM2_IQ2_S = 20,
    MM2_IQ3_XXS = 21,
    MM2_IQ3_S = 22,
    MM2_IQ1_S = 23,
    MM2_IQ1_M = 24,
    MM2_TQ1_0 = 25,
    MM2_TQ2_0 = 26,
    MM2_Q1_0 = 27,
    MM2_MXFP4 = 28,
    MM2_NVFP4 = 29, /* decoded without the scale of the whole tensor that may lie beside it */
    MM2_U8 = 30,
    /* Codes only, as safetensors keep them in a tensor of their own (there it is U8 or I32); their
     * scales lie in another one, and mm2_tensor_decode gives what they multiply: E2M1, two a byte,
     * the even column in the low nibble, with a scale for 16 (NVFP4) or 32 (MXFP4); integers of 4
     * bits, 8 in an int32, less 8, and of 8 bits less 128 (compressed-tensors). */
    MM2_F4_16 = 31,
    MM2_F4_32 = 32,
    MM2_I4 = 33,
    MM2_I8 = 34,
    MM2_INT8 = 35, /* of a cache alone, no tensor's: see mm2_session_options.kv_dtype */
    MM2_DTYPE_COUNT = 36
};

enum {                    /* mm2_tensor.flags */
       MM2_READ_ONLY = 1, /* writing would fault */
       MM2_PART = 2       /* mm2_model_weight_info: part of another weight */
};

typedef struct mm2_tensor {
    void *data;       /* 64-byte aligned for buffers of a session; as the file has it for weights */
    int64_t shape[4]; /* in elements, outermost first */
    int64_t strides[4]; /* in elements; for block formats those of the decoded tensor */
    int64_t nbytes;     /* of the whole view */
    int32_t ndim;       /* 0..4 */
    int32_t dtype;      /* MM2_F32 ... */
    uint32_t flags;     /* MM2_READ_ONLY, MM2_PART */
    uint32_t reserved;
} mm2_tensor;

/* "f32", "bf16", "f8_e4m3", "q4_k", ...; NULL for an unknown number. Static. */
const char *mm2_dtype_name(int32_t dtype);
/* Elements in one block (1 for plain types) and its bytes; 0 for an unknown number. */
int32_t mm2_dtype_block(int32_t dtype);
int32_t mm2_dtype_bytes(int32_t dtype);

/* Decode every element of a contiguous tensor to float32. `n`: capacity of out, must be at least
 * the element count. FP8 codes are decoded without their block scales: for weights see
 * mm2_model_weight. */
mm2_status mm2_tensor_decode(const mm2_tensor *t, float *out, int64_t n);

/* ----------------------------------------------------------------------------------------------
 * Model: an opened checkpoint */

typedef struct mm2_model mm2_model;
typedef struct mm2_tokenizer mm2_tokenizer;

/* mm2_model_options.flags */
enum {
    /* Weights may be written to. Edits stay in this process, files are not touched. */
    MM2_WRITABLE = 1,
    /* Read the files of weights into memory instead of mapping them: copies, checked to be whole, that
     * nobody can change or cut short. For network file systems, and hosts that must not be killed by
     * a file that shrinks. Takes the time to read them, and memory for all of them; NOMEM says how
     * much. */
    MM2_IN_MEMORY = 2
};

/* mm2_model_options.isa. Every level that the processor has gives the same bits, except BLAS. */
enum {
    MM2_ISA_AUTO = 0, /* as the environment variable MM2_ISA says (ref, avx2, ...), else the best */
    MM2_ISA_REF = 1,
    MM2_ISA_AVX2 = 2,
    MM2_ISA_AVX512 = 3,
    MM2_ISA_AMX = 4, /* avx512, and matrix units; asks the system for leave to use them */
    MM2_ISA_BLAS = 5 /* OpenBLAS on decoded float32 panels; no bit promise */
};

/* mm2_model_options.precision: what the weights are multiplied with. */
enum {
    /* What is fastest for the weights' type: int8 blocks for the integer formats, bf16 for BF16 and
     * FP8, float32 for F16 and F32. */
    MM2_PRECISION_FAST = 0,
    /* float32, by the weights' own float32 values, whatever their type; for measurements. Decoding
     * takes up to five times as long in the smallest formats, a prompt two to four times. The cache
     * has a type of its own: choose MM2_F32 for it too (mm2_session_options.kv_dtype). */
    MM2_PRECISION_EXACT = 1
};

typedef struct mm2_model_options {
    uint32_t size;     /* sizeof(mm2_model_options) */
    uint32_t flags;    /* MM2_WRITABLE, MM2_IN_MEMORY */
    int32_t threads;   /* with the caller, 1..1024; 0: physical cores that the process may use */
    int32_t isa;       /* MM2_ISA_AUTO ... */
    int32_t precision; /* MM2_PRECISION_FAST ... */
    int32_t reserved;
    /* Shared prefixes, see "Shared prefixes" below. Bytes of memory for pages that no session holds;
     * 0: there is no cache of prefixes. Not with MM2_WRITABLE: nobody could know which pages belong to
     * weights that were changed since. */
    int64_t prefix_cache;
    /* A folder that exists, where the pages are kept too; copied. NULL: memory alone. */
    const char *prefix_folder;
    int64_t prefix_disk; /* bytes of files in that folder at most; 0: 10 times prefix_cache */
} mm2_model_options;

void mm2_model_options_init(mm2_model_options *o);

/* Open a checkpoint: a Hugging Face directory (config.json, safetensors), a .gguf file (of a split
 * set: any part), or a directory that holds one GGUF checkpoint. Maps the files and checks every
 * tensor's name, type, shape and extent; reads no weights. *out is owned: mm2_model_release. Fails
 * with IO, FORMAT, UNSUPPORTED, NOMEM. */
mm2_status mm2_model_open(mm2_model **out, const char *path, const mm2_model_options *o);
void mm2_model_retain(mm2_model *m);
void mm2_model_release(mm2_model *m); /* NULL is allowed; the last release unmaps */

typedef struct mm2_config { /* names as in the family's config.json */
    uint32_t size;          /* sizeof(mm2_config) */
    int32_t num_hidden_layers;
    int32_t hidden_size;
    int32_t num_attention_heads;
    int32_t num_key_value_heads;
    int32_t head_dim;
    int32_t rotary_dim; /* leading dimensions of a head that are rotated */
    int32_t num_local_experts;
    int32_t num_experts_per_tok;
    int32_t intermediate_size;       /* of one expert */
    int32_t vocab_size;              /* rows of the embedding, padding included */
    int32_t max_position_embeddings; /* positions */
    int32_t use_qk_norm;             /* 0 or 1: RMS norm over the whole q and k rows */
    int32_t use_routing_bias; /* 0 or 1: a bias that takes part in the selection of experts only */
    float rope_theta;
    float rms_norm_eps;
    float routed_scaling_factor;
} mm2_config;

/* Copied. Fails with ARG (size). */
mm2_status mm2_model_config(const mm2_model *m, mm2_config *out);

/* A fact about the model as text, borrowed while it lives, or NULL where the files do not tell.
 *
 *     path             as it was opened
 *     format           "safetensors" or "gguf"
 *     architecture     as the files have it
 *     name, license    likewise
 *     quantization     dtypes of the weights, most bytes first
 *     isa              the kernels in use: "avx512", ...
 *     precision        "fast" or "exact"
 *     chat_template    the name of the recognised template
 */
const char *mm2_model_info(const mm2_model *m, const char *key);
/* The keys by index 0, 1, ...; NULL past the end. Static. */
const char *mm2_model_info_key(int32_t index);
/* Ids that end a generation, ascending: those that generation_config.json (or else config.json), the
 * tokenizer's files or the GGUF's eos, eot and eom keys name, and the chat format's own end of a turn
 * whatever the files say. Ids that are not among 0..vocab_size-1 are left out. Returns the count; ids
 * beyond `cap` are not written. */
int32_t mm2_model_end_tokens(const mm2_model *m, int32_t *ids, int32_t cap);
int32_t mm2_model_threads(const mm2_model *m);
int64_t mm2_model_bytes(const mm2_model *m); /* of all tensors */
/* Elements of all weights, scales and zero points left out. */
int64_t mm2_model_parameters(const mm2_model *m);

/* Tensors as they lie in the files, by index 0..count-1 in file order or by their name in the file.
 * Views are borrowed while the model lives; read-only unless it was opened with MM2_WRITABLE. Name:
 * NULL for an index out of range. Tensors that the model does not need are listed too, but for those
 * that no mm2_tensor can describe: of a type without a number here, of more than 4 dimensions, or
 * under a name that is not printable ASCII. */
int32_t mm2_model_tensor_count(const mm2_model *m);
const char *mm2_model_tensor_name(const mm2_model *m, int32_t index);
mm2_status mm2_model_tensor(const mm2_model *m, const char *name, mm2_tensor *out);
/* Quantised safetensors keep one weight in several tensors: codes, scales, zero points. This is
 * what they make together: shape and strides of the decoded weight, dtype of its codes (MM2_F4_16,
 * MM2_I4, ...), bytes of all of them; data is NULL. `name`: that of the tensor of codes, or
 * "X.weight" where it is "X.weight_packed". A tensor that is part of another weight is described
 * alone, and has MM2_PART in its flags. Fails with ARG if there is no such tensor, FORMAT or
 * UNSUPPORTED if what stands beside it does not fit. */
mm2_status mm2_model_weight_info(const mm2_model *m, const char *name, mm2_tensor *out);
/* Decode rows [first, first + count) of a weight, under a name as above, seen as a matrix of its
 * last dimension, to float32, scales included. `n`: capacity of out in floats. With MM2_WRITABLE it
 * gives what is in memory now; the model itself has read global scales, and FP8 scales that are not
 * f32, when it was opened. */
mm2_status mm2_model_weight(const mm2_model *m, const char *name, int64_t first, int64_t count,
                            float *out, int64_t n);

/* ----------------------------------------------------------------------------------------------
 * Machine: what the hardware gives, and what tokens take of it */

typedef struct mm2_limits { /* of all threads together */
    uint32_t size;          /* sizeof(mm2_limits) */
    int32_t threads;        /* that took part */
    /* Bytes per second of memory: read by the level's widest loads alone, and with the best of
     * several software prefetches; best_read >= plain_read. */
    double plain_read, best_read;
    /* Operations per second, 2 a multiply-add, on random data in the first-level cache: int8
     * codes, and weights of bf16 and f32, by what the model's instruction-set level has for them. */
    double int8_ops, bf16_ops, f32_ops;
} mm2_limits;

/* Measure the machine with the model's threads and kernels, in about half a second. What is read
 * are the model's own mapped weights, at random places, or 512 MB of other memory if the model is
 * smaller or not in memory. Machines drift and have other users: call it again between the runs
 * that are to be compared with it. Meaningless while other threads run the model. Fails with ARG,
 * NOMEM. */
mm2_status mm2_model_limits(mm2_model *m, mm2_limits *out);

typedef struct mm2_attention { /* of all threads together */
    uint32_t size;             /* sizeof(mm2_attention) */
    int32_t threads;           /* that took part */
    double read; /* bytes per second of keys and values in memory that one token attends to */
    double ops;  /* operations per second, 2 a multiply-add, of rows of a prompt */
} mm2_attention;

/* Measure the model's attention to a cache of kv_dtype (as in a session), whose cells need not be
 * computed, in about a third of a second: what a token takes for each position before it. Needs as
 * much memory as mm2_model_limits does for a small model; otherwise the same holds. */
mm2_status mm2_model_attention(mm2_model *m, int32_t kv_dtype, mm2_attention *out);

typedef struct mm2_cost { /* what must be read and computed at least, however it is done */
    uint32_t size;        /* sizeof(mm2_cost) */
    uint32_t reserved;
    double weight_bytes; /* block scales included */
    double kv_bytes;
    /* Operations, 2 a multiply-add: with integer weights, and attention to an INT8 cache; with BF16
     * and FP8 weights, and attention to a BF16 cache; with F16 and F32 weights, and attention to an
     * F32 cache. */
    double int8_ops, bf16_ops, f32_ops;
} mm2_cost;

/* What it takes to evaluate `tokens` tokens together behind `depth` earlier ones, whose keys and
 * values are read from a cache of kv_dtype (as in a session). `layers`: all layers together;
 * `rest`: the rows of the embedding, the final norm, and the output head for the last token. One
 * token reads num_experts_per_tok experts a layer; for more, as many as evenly spread choices hit
 * on average, E * (1 - (1 - num_experts_per_tok / E)^tokens). Fails with ARG if depth + tokens is
 * beyond max_position_embeddings. */
mm2_status mm2_model_cost(const mm2_model *m, int32_t tokens, int32_t depth, int32_t kv_dtype,
                          mm2_cost *layers, mm2_cost *rest);

/* ----------------------------------------------------------------------------------------------
 * Text: byte-level BPE and the family's chat format */

/* A tokenizer without a model: from tokenizer.json, a directory that holds one, or a GGUF file. *out
 * is owned: mm2_tokenizer_release. */
mm2_status mm2_tokenizer_open(mm2_tokenizer **out, const char *path);
void mm2_tokenizer_release(mm2_tokenizer *t);
/* The model's own; borrowed while the model lives. NULL, with a sentence, if the checkpoint has
 * none. */
const mm2_tokenizer *mm2_model_tokenizer(const mm2_model *m);

typedef struct mm2_tokenizer_info { /* ids; -1 where the files name none */
    uint32_t size;                  /* sizeof(mm2_tokenizer_info), set by the caller */
    int32_t vocab_size;             /* highest id + 1 */
    int32_t bos, eos, unk, pad;
    int32_t think_open, think_close; /* <think>, </think> */
} mm2_tokenizer_info;

mm2_status mm2_tokenizer_describe(const mm2_tokenizer *t, mm2_tokenizer_info *out); /* copied */

/* encode: strings such as "[e~[" become their token instead of plain text;
 * decode: special tokens are written out. */
enum { MM2_SPECIAL = 1 };

/* Text to ids. `text` is `len` bytes, at most 64 MiB, and may hold anything; invalid UTF-8 becomes
 * U+FFFD. Returns the count; ids beyond `cap` are not written (call with cap 0 to measure). Added
 * tokens that are not special, such as <think>, count as special here: user text never turns into
 * control tokens unless MM2_SPECIAL is given. */
int32_t mm2_tokenizer_encode(const mm2_tokenizer *t, const char *text, int32_t len, int32_t flags,
                             int32_t *ids, int32_t cap);

/* The same in parts, for a text that takes longer than its caller wants to wait. The tokenizer and
 * the text are borrowed until the encoding is freed. *out is owned: mm2_encoding_free. Fails with
 * ARG, NOMEM. An encoding is used by one thread at a time. */
typedef struct mm2_encoding mm2_encoding;
mm2_status mm2_encoding_new(mm2_encoding **out, const mm2_tokenizer *t, const char *text,
                            int32_t len, int32_t flags);
void mm2_encoding_free(mm2_encoding *e); /* NULL is allowed */
/* Writes the next *count ids, at most `cap`: OK at the end of the text; MORE if `budget_us`
 * microseconds are spent (0: no limit) or the room is: call again to go on. A budget is kept to
 * within a millisecond and, in a text with long words, the 50 nanoseconds a byte that it takes to
 * find where the longest one ends. Fails with ARG, NOMEM, BUSY, and UNSUPPORTED if the tokenizer's
 * own pattern is too costly for the text; but for BUSY an encoding that failed cannot go on. */
mm2_status mm2_encoding_run(mm2_encoding *e, int32_t budget_us, int32_t *ids, int32_t cap,
                            int32_t *count);

/* Ids to bytes, same rule for cap. Special tokens are left out unless MM2_SPECIAL is given; ids
 * that have no token write nothing; ids outside 0..vocab_size-1 fail. */
int32_t mm2_tokenizer_decode(const mm2_tokenizer *t, const int32_t *ids, int32_t n, int32_t flags,
                             char *out, int32_t cap);
/* The bytes of one token, borrowed while the tokenizer lives; *len may be 0. NULL if the id is out
 * of range. */
const char *mm2_tokenizer_token(const mm2_tokenizer *t, int32_t id, int32_t *len);
/* The id whose bytes are exactly these, added tokens first; -1 if there is none. */
int32_t mm2_tokenizer_id(const mm2_tokenizer *t, const char *bytes, int32_t len);
/* Ids of added tokens, ascending: control tokens, and others such as <think>, that no text becomes
 * unless MM2_SPECIAL is given. Whoever masks tokens by their bytes leaves them out. Returns the count;
 * ids beyond `cap` are not written. */
int32_t mm2_tokenizer_added(const mm2_tokenizer *t, int32_t *ids, int32_t cap);
/* How many of these bytes can be shown now without splitting a UTF-8 character that later bytes may
 * complete. */
int32_t mm2_text_complete(const char *bytes, int32_t len);

/* mm2_conversation.flags */
enum {
    MM2_GENERATION_PROMPT = 2, /* end with the opening of an assistant's turn, inside <think> */
    MM2_NO_THINKING = 4,       /* that is, behind an empty block of thinking: answer at once */
    MM2_KEEP_THINKING = 8 /* of all assistant turns, not only of those behind the last user's */
};

/* Messages and tools as JSON, in UTF-8 and NUL-terminated, the form that everybody sends. A message
 * is an object of
 *
 *     role         "system" (first only; "developer" is the same), "user", "assistant", "tool"
 *     content      a string, or a list of strings and of {"type": "text", "text": ...}, which are
 *                  joined; of a tool, which has the results of the calls before it, each is one
 *     tool_call_id tool: which call has this result. Neighbouring results are put into the order of
 *                  the calls, where all of both have ids; the format itself has none
 *     thinking     assistant: what stood between <think> and </think>; also under the names
 *                  reasoning_content, reasoning and reasoning_details, and as blocks in the content
 *     tool_calls   assistant: [{"name": ..., "arguments": {...}}, ...]; also inside of "function",
 *                  and the arguments also as JSON in a string; also as parts of the content of the
 *                  type tool_use, whose results are parts of the type tool_result of a user; one
 *                  whose is_error is true begins with "error: "
 *     current_date, current_location   system: lines behind its text
 *
 * Tools are [{"type": "function", "function": {"name": ..., "description": ..., "parameters": its
 * JSON schema}}, ...], also without "function" around them, and with "input_schema". Names and
 * schemas go to the model as they are, their keys in this order. */
typedef struct mm2_conversation {
    uint32_t size;        /* sizeof(mm2_conversation) */
    int32_t flags;        /* MM2_GENERATION_PROMPT, ... */
    const char *messages; /* a JSON array */
    const char *tools;    /* a JSON array; NULL: none */
    const char *identity; /* the system text where no message gives one; NULL: the checkpoint's */
} mm2_conversation;

/* Render turns in the vendor's format. Thinking is kept for assistant turns after the last user
 * turn, as the vendor's template does. _render gives the text (to read), _encode the ids (to feed):
 * in these, only the template's own tags become control tokens, whatever the messages contain. Both
 * return a length under the rule for cap. Fail with UNSUPPORTED if the checkpoint brings a chat
 * template that is not known to render the same, and with ARG where a message holds something that
 * the format has no place for. */
int32_t mm2_chat_render(const mm2_tokenizer *t, const mm2_conversation *c, char *out, int32_t cap);
int32_t mm2_chat_encode(const mm2_tokenizer *t, const mm2_conversation *c, int32_t *ids,
                        int32_t cap);
/* The text of the checkpoint's chat template if it is not a known one, for a program that can run
 * it; borrowed while the tokenizer lives. NULL: it is known, or there is none. */
const char *mm2_tokenizer_unknown_template(const mm2_tokenizer *t);
/* The ids that further turns, of users, assistants and tools, add to a timeline that holds a
 * conversation, sampled replies included: `timeline` are its `length` > 0 ids, or the last ones as
 * far back as the last turn's beginning. What is missing of that turn's end comes first: of one that
 * ended with [e~[ a newline; of one that was cut, or ended with another token, [e~[ and the newline;
 * of one that was cut while it was thinking, </think> before that, and so an empty answer. Tools and
 * identity stand at the beginning of the timeline: they are ignored here. Fails with ARG if results of
 * a tool come first and the timeline ends with an assistant's turn without a call. */
int32_t mm2_chat_continue(const mm2_tokenizer *t, const int32_t *timeline, int32_t length,
                          const mm2_conversation *c, int32_t *ids, int32_t cap);

/* Messages, in any form that is understood, in one of these: as OpenAI's chat interface takes them,
 * with thinking as reasoning_content, or as Anthropic's, whose system text stands apart: here it is
 * the first message. Calls are numbered and get ids, and results those of their calls. The JSON is
 * not terminated; the length follows the rule for cap. Fails with ARG, NOMEM. */
enum { MM2_FORM_OPENAI = 0, MM2_FORM_ANTHROPIC = 1 };
int32_t mm2_chat_export(const char *messages, int32_t form, char *out, int32_t cap);

/* ----------------------------------------------------------------------------------------------
 * Reply: from sampled ids to thinking, answer and calls of tools */

typedef struct mm2_reply mm2_reply;

/* mm2_reply_options.start: what stands before the first id. */
enum {
    MM2_START_TEXT = 0,     /* any text: all ids are answer, </think> is a text like others */
    MM2_START_THINKING = 1, /* a chat turn's <think>, as MM2_GENERATION_PROMPT leaves it */
    MM2_START_ANSWER = 2    /* a chat turn whose thinking is over */
};

typedef struct mm2_reply_options {
    uint32_t size;      /* sizeof(mm2_reply_options) */
    int32_t start;      /* MM2_START_TEXT ... */
    int32_t max_tokens; /* ids at most, >= 0; INT32_MAX by default */
    int32_t end_count, stop_count;
    int32_t reserved;
    /* The end_count ids that end the reply. NULL: the tokenizer's eos. A chat turn ends at [e~[
     * besides, and where another turn begins, whatever stands here. */
    const int32_t *end_tokens;
    /* The stop_count strings before which the answer ends: before the one that is complete first,
     * of several at once before the longest. They are not looked for in thinking and calls. */
    const char *const *stop;
    const int32_t *stop_len; /* their bytes, > 0; NULL: each ends before its NUL */
    /* Of a chat turn: the tools of the conversation, whose schemas type the arguments of calls, as
     * in mm2_conversation; NULL: none, all arguments are strings. */
    const char *tools;
    /* Ids of thinking at most, >= 0; INT32_MAX by default. Behind them mm2_piece.next closes it. */
    int32_t max_thinking;
    int32_t reserved2;
    /* Of a chat turn: the name of the tool that it must call, "" for any; NULL: the model's choice.
     * Behind the thinking mm2_piece.next opens the call. Fails with ARG if tools has no such tool. */
    const char *call;
} mm2_reply_options;

void mm2_reply_options_init(mm2_reply_options *o); /* plain text, no limit, no stop strings */

/* mm2_piece.end: why the reply has ended. */
enum {
    MM2_END_NONE = 0,      /* it goes on */
    MM2_END_STOP = 1,      /* an end token or a stop string */
    MM2_END_LENGTH = 2,    /* max_tokens */
    MM2_END_CONTEXT = 3,   /* by mm2_reply_end: the session's context is full */
    MM2_END_CANCELLED = 4, /* by mm2_reply_end */
    MM2_END_CALLS = 5      /* an end token, and the reply has called tools */
};

/* Text is bytes, not terminated, borrowed until the next call on the reply. It ends at whole
 * characters; bytes that can be none come through as they are. Of a chat turn, the format's newlines
 * around the thinking and before calls are left out. */
typedef struct mm2_piece {
    uint32_t size;    /* sizeof(mm2_piece), set by the caller */
    int32_t end;      /* MM2_END_NONE ... */
    int32_t count;    /* ids so far, one that ended the reply included */
    int32_t text_len; /* bytes of text, the answer */
    int32_t thinking_len;
    int32_t calls;    /* that have begun so far; see mm2_reply_call */
    const char *text; /* never NULL, likewise: */
    const char *thinking;
    /* Why the last text that looks like a call is none, "" where there is no such text. Static. */
    const char *reason;
    int32_t thought; /* ids of thinking so far, </think> included */
    /* The id that has to come next, whatever the model says, because the thinking has spent its
     * budget or a call must come: feed and push it instead of a sampled one. -1: the model's
     * choice. */
    int32_t next;
    /* Ids so far that came before the answer began, </think> included; -1: it has not begun, the reply
     * is thinking, or in a call that ended the thinking. Newlines of the format may follow. */
    int32_t answer_at;
    int32_t reserved;
} mm2_piece;

/* mm2_call.state */
enum {
    MM2_CALL_OPEN = 0,     /* its arguments are still coming */
    MM2_CALL_COMPLETE = 1, /* the model has closed it */
    MM2_CALL_CUT = 2       /* the reply ended inside it: what there is of it */
};

/* A call of a tool. Bytes, not terminated, borrowed until the next call on the reply. */
typedef struct mm2_call {
    uint32_t size;   /* sizeof(mm2_call), set by the caller */
    int32_t state;   /* MM2_CALL_OPEN ... */
    int32_t known;   /* 0: tools were given, and none of that name */
    int32_t text_at; /* bytes of the answer before it */
    int32_t name_len, arguments_len;
    const char *name;
    /* JSON of an object. It only grows while the call is open, strings character by character, and
     * is whole afterwards, wherever the reply was cut. A key that comes twice has its last value. */
    const char *arguments;
} mm2_call;

/* Turns ids, as they are sampled, into text. The tokenizer is borrowed: it must live until the last
 * push. NULL: ids have no text, and only end tokens and max_tokens end the reply. Options are
 * copied; NULL: the defaults. *out is owned: mm2_reply_free. Fails with ARG, NOMEM. A reply is used
 * by one thread at a time. */
mm2_status mm2_reply_new(mm2_reply **out, const mm2_tokenizer *t, const mm2_reply_options *o);
void mm2_reply_free(mm2_reply *r); /* NULL is allowed */
/* The next id: `piece` (may be NULL) is what it adds to the text. Held back is what may become a
 * stop string, and a character that is not complete. An id without a token adds nothing, even if it
 * is beyond the tokenizer's vocabulary: a model's head may have more rows. Fails, and nothing is
 * changed, with ARG (a negative id; the reply has ended), NOMEM. */
mm2_status mm2_reply_push(mm2_reply *r, int32_t id, mm2_piece *piece);
/* Ends the reply for a reason of the caller's, MM2_END_CONTEXT or MM2_END_CANCELLED: `piece` (may
 * be NULL) is what was held back. A reply that has ended stays as it is. */
mm2_status mm2_reply_end(mm2_reply *r, int32_t reason, mm2_piece *piece);
/* Everything so far: all the pieces joined. */
mm2_status mm2_reply_all(mm2_reply *r, mm2_piece *piece);
/* Call `index`, 0 .. mm2_piece.calls - 1, as far as it came. Whatever a model writes is no error: what
 * is no call comes as the text, or thinking, that it is. Values are typed by the schema where they
 * are JSON of such a type, or a number, boolean or null in another spelling; all else is a string. */
mm2_status mm2_reply_call(mm2_reply *r, int32_t index, mm2_call *call);

/* ----------------------------------------------------------------------------------------------
 * Grammar: texts of a form that the caller chooses */

typedef struct mm2_grammar mm2_grammar;
typedef struct mm2_constraint mm2_constraint;

/* What the text of a grammar is.
 *
 * REGEX: a regular expression, of which the whole text is a match. Known are characters, `.` (all but
 * a newline), classes such as [a-z_] and [^"], alternatives with |, groups ( ) and (?: ), repetition
 * by * + ? {m} {m,} {m,n} {,n}, and the escapes \d \w \s \D \W \S (of ASCII), \n \t \r \f \v \a,
 * \xHH, \uHHHH and those of punctuation. ^ at the beginning and $ at the end mean nothing. It says the
 * same as in Python's re.fullmatch with re.ASCII.
 *
 * CHOICES: a JSON list of strings, one of which is the text.
 *
 * JSON_SCHEMA: JSON that fits a schema: type (one or several of them), properties, required, items,
 * prefixItems, minItems, maxItems, enum, const, minLength, maxLength, pattern, format (date, time,
 * date-time, uuid), minimum and the like of integers, anyOf, oneOf, $ref to #/$defs/... that does not
 * lead to itself, additionalProperties (true or false). Properties come in the order of the schema,
 * those that are not required may be missing, and there are no others. Behind each ":" and "," one
 * space or none, and no other white space. A number has 15 digits at most before the point, 15 behind
 * it, and an exponent of two. What else would restrict a value is refused by its name and path. */
enum { MM2_GRAMMAR_REGEX = 1, MM2_GRAMMAR_CHOICES = 2, MM2_GRAMMAR_JSON_SCHEMA = 3 };

/* A grammar for texts made of this tokenizer's tokens. The tokenizer is borrowed: it must live as
 * long as the grammar and its constraints. Immutable, for any number of threads and constraints at
 * once; it keeps the masks that it has made, of which the oldest go first. `text`: UTF-8,
 * NUL-terminated, copied. *out is owned: mm2_grammar_free. Fails with ARG (the text is wrong),
 * UNSUPPORTED (it is right, but too large, or has what is not known here), NOMEM; the sentence says
 * where. */
mm2_status mm2_grammar_new(mm2_grammar **out, const mm2_tokenizer *t, int32_t kind,
                           const char *text);
/* NULL is allowed. Its constraints go on. */
void mm2_grammar_free(mm2_grammar *g);
/* Whether a whole text has the form: 1 or 0. Fails with ARG, NOMEM. */
int32_t mm2_grammar_matches(mm2_grammar *g, const char *text, int32_t len);

typedef struct mm2_constraint_options {
    uint32_t size;      /* sizeof(mm2_constraint_options) */
    int32_t start;      /* as in mm2_reply_options: where the first id stands */
    int32_t vocab_size; /* tokens that a mask has bits for; 0: those of the tokenizer */
    int32_t end_count;
    /* The end_count ids that may come when the text is complete, and not before. NULL: the
     * tokenizer's eos. */
    const int32_t *end_tokens;
} mm2_constraint_options;

void mm2_constraint_options_init(mm2_constraint_options *o); /* a text, the tokenizer's own ids */

/* The state of one text that grows, by ids. In a chat turn that thinks (MM2_START_THINKING) the
 * grammar begins behind </think>, and behind the format's newlines there, two at most; before it
 * anything may come but the end and a call. Options are copied; NULL: the defaults. *out is owned:
 * mm2_constraint_free. Fails with ARG (no end token), NOMEM. A constraint is used by one thread at a
 * time. */
mm2_status mm2_constraint_new(mm2_constraint **out, mm2_grammar *g,
                              const mm2_constraint_options *o);
/* A second one that stands where c stands, to look ahead with; owned likewise. */
mm2_status mm2_constraint_fork(mm2_constraint **out, mm2_constraint *c);
void mm2_constraint_free(mm2_constraint *c); /* NULL is allowed */
/* The tokens that may come next: *mask has (vocab_size + 31) / 32 words, as mm2_sampler_next takes
 * them; borrowed until the next call on the constraint. Tags and other added tokens never stand for
 * their bytes. Where the text can only end, end tokens are all there is. Fails with ARG (the text has
 * ended), NOMEM, UNSUPPORTED (the pattern is too costly), BUSY. */
mm2_status mm2_constraint_mask(mm2_constraint *c, const uint32_t **mask);
/* The id that has come. Fails, and nothing is changed, with ARG (the mask would not have allowed it),
 * NOMEM, BUSY. */
mm2_status mm2_constraint_push(mm2_constraint *c, int32_t id);
/* 1: the text so far is complete, and may end. 0: not yet, it thinks, or it has ended. BUSY. */
int32_t mm2_constraint_accepts(mm2_constraint *c);
/* The ids that must come next, each the only one its mask allows: returns how many; at most `cap` are
 * looked for. Fails as mm2_constraint_mask does. */
int32_t mm2_constraint_forced(mm2_constraint *c, int32_t *ids, int32_t cap);

/* ----------------------------------------------------------------------------------------------
 * Session: one timeline */

typedef struct mm2_session mm2_session;

typedef struct mm2_session_options {
    uint32_t size;    /* sizeof(mm2_session_options) */
    int32_t context;  /* positions, 1..max_position_embeddings; 0: the smaller of that and 8192 */
    int32_t kv_dtype; /* of keys and values, see below; MM2_BF16 by default */
    int32_t chunk;    /* prompt tokens that go through the layers together, 1..4096; 0: 1024 */
} mm2_session_options;

/* kv_dtype, and the bytes of a cached position in each layer and key/value head:
 *   MM2_F32   8 * head_dim. Attention is computed in float32.
 *   MM2_BF16  4 * head_dim. Queries and the weights of attention are rounded to bf16 too.
 *   MM2_INT8  2 * head_dim + 8. Keys and values are int8 codes, with a float32 scale for each head
 *             and position; queries and the weights of attention are integers of 15 bits and a sign,
 *             and their products with the codes are summed up exactly. All but the weights are rotated
 *             before they are rounded (by a Hadamard matrix), which spreads what single channels
 *             stand out with. head_dim is at most 512. For contexts that BF16 has no room or no
 *             time for. Not the default, because keys of real checkpoints have such channels, and
 *             nobody has measured yet what is lost on them. */

void mm2_session_options_init(mm2_session_options *o);

typedef struct mm2_plan {             /* bytes of memory */
    uint32_t size;                    /* sizeof(mm2_plan) */
    int32_t context, kv_dtype, chunk; /* of the session, defaults filled in */
    int64_t weights;    /* that the model is evaluated with, of all its sessions together */
    int64_t cache;      /* keys and values of the whole context; committed as it fills, by pages */
    int64_t cache_page; /* of 256 positions */
    int64_t session;    /* its tokens and logits */
    /* Of the rows in flight: for a chunk of this session, or as many rows of a batch. Kept by the
     * model, once for all sessions that do not run at the same time. */
    int64_t buffers;
    int64_t present; /* of the machine, or what the process's control groups allow if it is less */
    int64_t available; /* of these, can be had now; pages of files count, those of weights too */
} mm2_plan;

/* What a session of these options (NULL: the defaults) would take. Nothing is allocated or read, so
 * a model that memory has no room for can be asked too. Fails with ARG, NOMEM. */
mm2_status mm2_model_plan(mm2_model *m, const mm2_session_options *o, mm2_plan *out);

/* *out is owned: mm2_session_free. Retains the model. Fails with NOMEM if the whole context and the
 * buffers of a chunk would not fit into memory. The chunk does not change the bits. */
mm2_status mm2_session_new(mm2_session **out, mm2_model *m, const mm2_session_options *o);
/* A second session that stands where s stands, tokens, pending ones too, and logits included; owned
 * likewise. It shares the pages of the cache, so it takes microseconds, and memory only as one of the
 * two goes on: the page that is written next is copied as far as it is filled. Both go on with the
 * bits of sessions that were never forked. Taps that are on and a membership in a batch stay with s,
 * and so do rows of a prompt that it is in the middle of: the fork evaluates its own. Fails with
 * NOMEM, BUSY. */
mm2_status mm2_session_fork(mm2_session **out, mm2_session *s);
/* NULL is allowed. A batch that has the session, or a call in another thread that works on it, keeps
 * it until the end. */
void mm2_session_free(mm2_session *s);

/* Append tokens to the timeline; they are copied, no work is done yet. n = 0 is an error, as are
 * ids outside the vocabulary. */
mm2_status mm2_session_feed(mm2_session *s, const int32_t *ids, int32_t n);

/* Activations that a run can stop at, in the order of the data flow; `rows` are token rows of a
 * chunk. The expert weights are computed from the expert indices that a tap leaves. A tap at logits
 * asks for the logits of every row. embed exists at layer 0 only, final_norm and logits at the last
 * layer only. */
enum {
    MM2_POINT_EMBED = 0,     /* f32 [rows, hidden_size] */
    MM2_POINT_RESID_PRE = 1, /* f32 [rows, hidden_size]: the stream on entry to the layer */
    MM2_POINT_ATTN_NORM = 2, /* f32 [rows, hidden_size] */
    MM2_POINT_Q = 3,         /* f32 [rows, num_attention_heads, head_dim], normed, not rotated */
    MM2_POINT_K = 4,         /* f32 [rows, num_key_value_heads, head_dim], likewise */
    MM2_POINT_V = 5,         /* f32 [rows, num_key_value_heads, head_dim] */
    MM2_POINT_Z = 6,         /* f32 [rows, num_attention_heads, head_dim]: before o_proj */
    MM2_POINT_ATTN_OUT = 7,  /* f32 [rows, hidden_size]: what attention adds to the stream */
    MM2_POINT_RESID_MID = 8, /* f32 [rows, hidden_size]: the stream after attention */
    MM2_POINT_MLP_NORM = 9,  /* f32 [rows, hidden_size] */
    MM2_POINT_ROUTER_LOGITS = 10,  /* f32 [rows, num_local_experts], before the sigmoid */
    MM2_POINT_EXPERT_INDICES = 11, /* i32 [rows, num_experts_per_tok], ascending */
    MM2_POINT_EXPERT_WEIGHTS = 12, /* f32 [rows, num_experts_per_tok], as the indices */
    MM2_POINT_MLP_OUT = 13,        /* f32 [rows, hidden_size]: what the experts add to the stream */
    MM2_POINT_RESID_POST = 14,     /* f32 [rows, hidden_size]: the stream on leaving the layer */
    MM2_POINT_FINAL_NORM = 15,     /* f32 [rows, hidden_size] */
    MM2_POINT_LOGITS = 16,         /* f32 [rows, vocab_size] */
    MM2_POINT_COUNT = 17
};

const char *mm2_point_name(int32_t point); /* "embed", "resid_pre", ...; NULL if unknown. Static */

/* Switch a tap on or off at a layer, or at all with layer -1. Taps that are off cost nothing. Takes
 * effect at once. */
mm2_status mm2_session_tap(mm2_session *s, int32_t point, int32_t layer, int32_t on);

/* What an edit does to the elements x of a row of an activation, values v: */
enum {
    MM2_EDIT_ADD = 0,   /* x += factor * v */
    MM2_EDIT_SET = 1,   /* x = v; without values: factor */
    MM2_EDIT_SCALE = 2, /* x *= v; without values: factor */
    MM2_EDIT_CLAMP = 3, /* x = low where it is less, high where it is more */
    MM2_EDIT_CAP = 4,   /* x = factor * tanh(x / factor) */
    /* x -= factor * the part of x that lies in the space of v, whose `rows` rows need not be
     * orthogonal; factor 1 takes it out. */
    MM2_EDIT_PROJECT = 5,
    /* At expert_weights, of a token's experts: the `rows` heaviest stay, the others weigh 0, and the
     * sum stays; or the weight of each expert e is multiplied by v[e], v being [num_local_experts]. */
    MM2_EDIT_KEEP = 6,
    MM2_EDIT_WEIGH = 7,
    /* At expert_indices: v, [num_local_experts], is added to the scores by which experts are chosen,
     * not to their weights. -INFINITY masks (enough must be left), INFINITY forces (of more than are
     * chosen the first ones). */
    MM2_EDIT_CHOOSE = 8,
    MM2_EDIT_COUNT = 9
};

typedef struct mm2_edit {           /* zeros: everywhere, at all times */
    uint32_t size;                  /* sizeof(mm2_edit) */
    int32_t kind, point;            /* MM2_EDIT_ADD ...; MM2_POINT_EMBED ... */
    int32_t first_layer, end_layer; /* layers [first_layer, end_layer); 0: to the last */
    int32_t first, end;             /* positions [first, end); 0: without end */
    int32_t at, n;                  /* elements [at, at + n) of a row; 0: to its end */
    int32_t rows;                   /* see PROJECT and KEEP */
    int64_t count;                  /* of values */
    const float *values; /* [n], of PROJECT [rows, n], of WEIGH and CHOOSE [num_local_experts] */
    float factor, low, high;
} mm2_edit;

/* Edits activations while they are computed, in this order, without a stop; they replace the
 * session's earlier ones, n = 0: none. Copied. Rows that are evaluated from now on have them: taps see
 * what they leave, and so does everything behind. Other sessions of a batch do not; a fork has the
 * same edits, a file of a session none. What is cached of edited positions serves no other
 * session. Costs nothing where a session has none. Fails, and the earlier ones stay, with
 * ARG, NOMEM, BUSY. */
mm2_status mm2_session_set_edits(mm2_session *s, const mm2_edit *edits, int32_t n);

typedef struct mm2_event { /* what the last run call ended with */
    uint32_t size;         /* sizeof(mm2_event) */
    int32_t session;       /* TAP and READY in a batch: index of the session; 0 otherwise */
    int64_t done, total;   /* progress of what was fed, in units of token-layers */
    int32_t point, layer;  /* of a TAP; -1 otherwise */
    int32_t first, count;  /* TAP: rows are the positions [first, first + count) of the timeline */
    /* TAP: a live view, to be used until the next run of the session; the memory lives as long as
     * the model. What you write here is what the run goes on with. Expert indices must stay
     * ascending, distinct and in range. */
    mm2_tensor tensor;
} mm2_event;

/* Work until everything fed is evaluated (OK), `budget_us` microseconds are spent (MORE; 0: no
 * limit) or a tap is reached (TAP). A budget is kept to within one unit of work, a few
 * milliseconds. `event` may be NULL if no taps are on. Fails with NOMEM, ARG (a tap left impossible
 * expert indices), BUSY, IO (a mapped file was changed), FORMAT (a restored session's file is
 * damaged). Nothing to do: OK. */
mm2_status mm2_session_run(mm2_session *s, int32_t budget_us, mm2_event *event);
/* From any thread: a run in progress, of the session or of its batch, or a save, returns MORE at its
 * next unit of work; without one, nothing happens. */
void mm2_session_interrupt(mm2_session *s);

int32_t mm2_session_context(const mm2_session *s);  /* positions there is room for */
int32_t mm2_session_position(const mm2_session *s); /* tokens evaluated */
int32_t mm2_session_length(const mm2_session *s);   /* tokens fed, evaluated or not */
int32_t mm2_session_kv_dtype(const mm2_session *s); /* MM2_F32, MM2_BF16 or MM2_INT8 */
/* Positions that it took from the cache of prefixes instead of evaluating them; see below. */
int32_t mm2_session_reused(const mm2_session *s);
/* All tokens fed so far: i32 [length], read-only, borrowed while the session lives; contents change
 * with the timeline. */
mm2_status mm2_session_tokens(mm2_session *s, mm2_tensor *out);
/* Cut the timeline back to `length` tokens, 0..length, dropping evaluation beyond. The logits are
 * gone until the next run; feeding on gives the same bits as a session that never went further. */
mm2_status mm2_session_rewind(mm2_session *s, int32_t length);

/* Logits of the last token evaluated: f32 [vocab_size], writable (a script may edit them before
 * sampling), borrowed while the session lives, contents stable until the next run. Fails with ARG
 * if nothing was evaluated yet or tokens are pending. */
mm2_status mm2_session_logits(mm2_session *s, mm2_tensor *out);
/* Natural-log probabilities by those logits: of the n given ids; or the n best, best first (ties:
 * lower id). */
mm2_status mm2_session_logprobs(mm2_session *s, const int32_t *ids, int32_t n, float *out);
mm2_status mm2_session_top(mm2_session *s, int32_t n, int32_t *ids, float *logprobs);

/* ----------------------------------------------------------------------------------------------
 * Speculation: tokens evaluated before they are chosen */

/* A run may evaluate tokens that are likely to come together with the last one fed: some rows more
 * cost less than a run for each. They are no part of the timeline, and nobody ever sees them. When the
 * next token is fed and is one that was foretold, the next run has its logits at once; when it is
 * another one, what was evaluated in vain is forgotten. So you choose and feed one token at a time, as
 * ever, and get the same bits as without; only the time differs. Logits of tokens ahead take memory of
 * the session's: vocab_size * 4 bytes for each.
 *
 * None of it while a tap is on: then each row is evaluated in its turn, to be looked at and edited.
 * Nor in a batch of several members, whose rows share the weights already. A fork and a saved session
 * begin without. New edits (mm2_session_set_edits) begin without what was evaluated before them. */
enum { MM2_DRAFT_MOST = 15 }; /* tokens ahead of the timeline */

/* From now on the library proposes what is likely: up to `most` tokens (0: none, as at first) that
 * followed an earlier occurrence of the timeline's last ones. It measures what runs of one and of more
 * rows take and how often proposals come true, and proposes only where that is expected to win; where
 * it loses, nothing is proposed. What was measured stays with the session. Counts of mm2_speculation
 * begin anew. Fails with ARG, NOMEM, BUSY. */
mm2_status mm2_session_speculate(mm2_session *s, int32_t most);
/* You say which tokens are likely behind the last one fed, such as those that a grammar is about to
 * force, or those of an older text: the next run evaluates as many of them as there is room for,
 * whatever they cost. The first ones may be fed before it. They replace what was said before. While
 * rows are in flight, or what was evaluated ahead has not been contradicted, nothing is changed.
 * n = 0: none. Copied. Fails with ARG, NOMEM, BUSY. */
mm2_status mm2_session_draft(mm2_session *s, const int32_t *ids, int32_t n);

typedef struct mm2_speculation {
    uint32_t size;  /* sizeof(mm2_speculation) */
    int32_t most;   /* as mm2_session_speculate was told */
    int32_t closed; /* 1: it is expected to lose at present, so nothing is proposed */
    int32_t reserved;
    int64_t proposed; /* tokens that were evaluated ahead */
    int64_t accepted; /* of these: came, and took no run of their own */
    int64_t runs;     /* that had some */
} mm2_speculation;

/* What came of it; copied. Fails with ARG, BUSY. */
mm2_status mm2_session_speculation(mm2_session *s, mm2_speculation *out);

/* ----------------------------------------------------------------------------------------------
 * Sessions on disk */

/* Write a session to a file: its tokens, pending ones too, the keys and values of those that are
 * evaluated, and the logits if they are at hand, edits of a script included. The session stays as it
 * is. Rows of a prompt that it is in the middle of do not count, as in a fork: it stands in the file
 * where the last tokens were committed. Taps and a membership in a batch are not saved; nor are
 * samplers and replies, which are the caller's: a sampler of the same options, seed included, goes on
 * with the same draws, and a reply comes back by pushing its ids again.
 *
 * The file is written as path.tmp beside it, brought to the disk, and renamed: whatever stops the
 * process or the machine, `path` leads to the old file or to the new one, each of them whole. A call
 * that fails leaves no trace; a process that is killed may leave path.tmp, which the next save to the
 * same path takes over. A link at `path` is replaced, not followed. The file holds what was said: its
 * permissions are those of the process's umask. It takes as many bytes as the pages of the cache, so
 * saving can take seconds: mm2_session_interrupt ends it with MORE, and nothing is saved. To go on
 * meanwhile, save a fork in another thread. Fails with IO, NOMEM, FORMAT (it was restored from a file
 * that is damaged), BUSY (the session, or the path: somebody is writing the same file). */
mm2_status mm2_session_save(mm2_session *s, const char *path);

typedef struct mm2_restore_options {
    uint32_t size;    /* sizeof(mm2_restore_options) */
    uint32_t flags;   /* MM2_IN_MEMORY: read the keys and values instead of mapping the file */
    int32_t context;  /* positions, at least as many as there are tokens; 0: as many as the session
                         had, or the model has */
    int32_t kv_dtype; /* 0: as in the file; a dtype: refuse a file with another */
    int32_t chunk;    /* as in mm2_session_options */
} mm2_restore_options;

/* Sets every field to its default: as in the file, mapped. */
void mm2_restore_options_init(mm2_restore_options *o);

/* A session that stands where the saved one stood, and goes on with the same bits; owned like any
 * other. The file is mapped, not read, so it takes milliseconds however long it is; what the session
 * writes stays in this process. Replace or delete the file as you like (a map keeps the old one), but
 * do not write into it or cut it short: a run looks at its size and time and fails with IO, and what
 * it cannot see in time is a fault, as with weights; MM2_IN_MEMORY is the remedy.
 *
 * All of the file is held against its checksums: keys and values when a run first needs them, all
 * the rest here. A run that meets damage fails with FORMAT before it evaluates anything, and says
 * what can be kept by mm2_session_rewind; in a batch, event->session says which member it is.
 *
 * The model must be the same in what it computes: its configuration but for the number of positions,
 * the types of its weights, precision, blas or not, and samples of the weights: 256 bytes of each one
 * outside the experts, and of one expert a layer. That tells other trainings, merges and
 * quantisations, but no edit of a few weights (MM2_WRITABLE). Checksums protect from accidents only:
 * restore files from people whom you trust with what the session says. Fails with IO, FORMAT
 * (damaged, cut short, no session), ARG (another model, kv_dtype, or too small a context),
 * UNSUPPORTED (numerics or format of another version), NOMEM; the sentence says what differs. */
mm2_status mm2_session_restore(mm2_session **out, mm2_model *m, const char *path,
                               const mm2_restore_options *o);

/* ----------------------------------------------------------------------------------------------
 * Shared prefixes */

/* A model that is opened with prefix_cache keeps the keys and values of what its sessions evaluate, in
 * pages of 256 positions, and a session whose tokens begin as some that are known starts behind them.
 * What is taken has the bits that evaluating would have given; tokens themselves are compared, not
 * their hashes alone.
 *
 * A page goes in when all its positions are evaluated, unless the session stopped at a tap at one of
 * them or before, since a script may have written there: from there on what a session has is its own,
 * until it is cut back to that position (mm2_session_rewind). Restored sessions put nothing in before
 * they are cut back to 0. A session looks when a run finds more than 256 tokens pending at a position
 * that is a multiple of 256, 0 to begin with, while none of its taps is on: who taps wants to see all
 * rows. The last token is always evaluated, for its logits. A page belongs to its tokens and their
 * places, the model, and kv_dtype.
 *
 * Pages that sessions hold cost nothing more; those that only the cache holds are limited to
 * prefix_cache bytes, and least recently used ones go first. With a folder, a thread of the library
 * writes pages there as they come (one that must leave memory before its turn is lost), and reads those
 * that memory does not have: such a run answers MORE, or sleeps, until they are there, and other
 * members of a batch go on meanwhile. Any number of processes may use one folder, with other models
 * too; each of them keeps all the files together within its prefix_disk, least recently used ones go
 * first. Files have checksums: one that is damaged is removed and counted, and what it held is
 * evaluated again. A folder that is full or read-only is no error either: the statistics say why. The
 * files hold what was said, under the permissions of the process's umask. The model's last release
 * waits until what is known is written. After fork() the child begins with an empty cache, and the
 * same folder. */
typedef struct mm2_prefix_stats {
    uint32_t size;     /* sizeof(mm2_prefix_stats) */
    int32_t pages;     /* in memory */
    int64_t bytes;     /* of those that no session holds */
    int64_t limit;     /* of these: prefix_cache; 0: there is no cache */
    int64_t reused;    /* positions that sessions took, ever; likewise: */
    int64_t added;     /* pages that sessions put in */
    int64_t evicted;   /* pages that went for want of memory */
    int64_t read;      /* pages that came from the folder */
    int64_t written;   /* pages that went there */
    int64_t removed;   /* files that went for want of room there */
    int64_t damaged;   /* files that were not what was written */
    int64_t failed;    /* pages that could not be written */
    int32_t unwritten; /* pages that wait for it now */
    int32_t reserved;
    char problem[256]; /* why the last page could not be written; "" if it was */
} mm2_prefix_stats;

/* What the cache has and did; copied. Fails with ARG. */
mm2_status mm2_model_prefix_stats(mm2_model *m, mm2_prefix_stats *out);

/* ----------------------------------------------------------------------------------------------
 * Batch: sessions advanced together */

typedef struct mm2_batch mm2_batch;

typedef struct mm2_batch_options {
    uint32_t size; /* sizeof(mm2_batch_options) */
    /* Tokens that go through the layers together, of all members, 1..4096; 0: 256. Members with one
     * token pending go first; what is left is for prompts, in turns. So this is how long a member
     * that decodes waits for others' prompts, and how well prompts use the machine. */
    int32_t rows;
} mm2_batch_options;

void mm2_batch_options_init(mm2_batch_options *o);

/* *out is owned: mm2_batch_free. Retains the model and its members. */
mm2_status mm2_batch_new(mm2_batch **out, mm2_model *m, const mm2_batch_options *o);
/* NULL is allowed; the members go on alone, when a call in another thread that runs them is over. */
void mm2_batch_free(mm2_batch *b);
/* Add a session of the same model; its index stands in event.session until a removal, which moves
 * the later ones down by one. A member is run by its batch only (mm2_session_run says BUSY); feed,
 * rewind and sample it as ever. */
mm2_status mm2_batch_add(mm2_batch *b, mm2_session *s);
mm2_status mm2_batch_remove(mm2_batch *b, mm2_session *s);
/* As mm2_session_run, for all members. READY: the member event->session has caught up and has its
 * logits; each is reported once after what was fed to it. Sample it and feed it, or leave it, and
 * call again: tokens that were fed meanwhile join the next rows. OK: every member has caught up and
 * was reported. Cutting, adding or removing a member never drops what others have in flight. */
mm2_status mm2_batch_run(mm2_batch *b, int32_t budget_us, mm2_event *event);

/* ----------------------------------------------------------------------------------------------
 * Sampler: from logits to a token */

typedef struct mm2_sampler mm2_sampler;

/* Steps in this order, each skipped at its neutral value: mask, bias, penalties, DRY, temperature,
 * top_k, top_p, min_p, typical_p, top_n_sigma, draw. The order of Hugging Face: temperature first
 * among the warpers. */
typedef struct mm2_sampling {
    uint32_t size;     /* sizeof(mm2_sampling) */
    int32_t top_k;     /* keep the k best; 0: off */
    uint64_t seed;     /* the draw depends on (seed, position) and the logits only */
    float temperature; /* > 0 divides the logits; 0: greedy, the best token, ties to the lower id */
    float top_p;       /* keep the fewest best tokens with this much probability, 0..1; 1: off */
    float min_p;       /* drop tokens less likely than min_p x the best, 0..1; 0: off */
    float typical_p;   /* locally typical sampling, 0..1; 1: off (Meister et al. 2022) */
    float top_n_sigma; /* keep logits within n sigma of the best; 0: off (Tang et al. 2024) */
    /* > 0; divides positive, multiplies negative logits of tokens seen; 1: off (Keskar et al.) */
    float repetition_penalty;
    float presence_penalty;  /* subtracted once for tokens seen; 0: off */
    float frequency_penalty; /* subtracted for each time seen; 0: off */
    int32_t penalty_window;  /* last tokens that the penalties look at; -1: all; 0: none */
    /* DRY, "don't repeat yourself": penalty multiplier x base^(length - allowed); 0: off */
    float dry_multiplier;
    float dry_base;             /* >= 1 */
    int32_t dry_allowed_length; /* repetitions up to this length are free, >= 1 */
    int32_t dry_window;         /* last tokens that DRY looks at; -1: all; 0: none */
} mm2_sampling;

/* The defaults of the checkpoint's generation_config.json (of M2: temperature 1.0, top_p 0.95,
 * top_k 40), everything else off, seed 0. m may be NULL for the family's. */
void mm2_sampling_init(mm2_sampling *o, const mm2_model *m);

/* *out is owned: mm2_sampler_free. Retains the model (its vocabulary size). `o` NULL: what
 * mm2_sampling_init sets. Fails with ARG if a field is out of range. */
mm2_status mm2_sampler_new(mm2_sampler **out, mm2_model *m, const mm2_sampling *o);
void mm2_sampler_free(mm2_sampler *p);
/* Values added to the logits of these ids (-INFINITY forbids); replaces earlier ones. Copied. n = 0
 * clears. */
mm2_status mm2_sampler_bias(mm2_sampler *p, const int32_t *ids, const float *values, int32_t n);
/* Tokens that end a DRY repetition, such as newlines and quotes; replaces earlier ones. Copied. n =
 * 0 clears. */
mm2_status mm2_sampler_breakers(mm2_sampler *p, const int32_t *ids, int32_t n);
/* Choose the token that follows the session's last one. mask: NULL, or (vocab_size + 31) / 32
 * words, bit i % 32 of word i / 32 allows token i. The session's logits are not changed. Returns an
 * id, or a negative status: ARG (no logits), NUMERIC (NaN, or nothing left to choose). Does not
 * feed it. */
int32_t mm2_sampler_next(mm2_sampler *p, mm2_session *s, const uint32_t *mask);
/* The same on any logits: f32 [vocab_size], not changed; `history`: the n tokens before; the draw
 * is for position n. */
int32_t mm2_sampler_pick(mm2_sampler *p, const float *logits, const int32_t *history, int32_t n,
                         const uint32_t *mask);

#ifndef MM2_CDEF
#ifdef __cplusplus
}
#endif
#pragma GCC visibility pop
#endif
#endif
