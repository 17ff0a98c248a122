-- Generated from csrc/minimax2.h by bindings/gen_cdef.py. Do not edit.
return [[
enum {
    MM2_ABI = 3,
    MM2_NUMERICS = 3,
    MM2_MAX_DIMS = 4,
};
typedef int32_t mm2_status;
enum {
    MM2_OK = 0,
    MM2_MORE = 1,
    MM2_TAP = 2,
    MM2_READY = 3,
    MM2_E_ARG = -1,
    MM2_E_NOMEM = -2,
    MM2_E_IO = -3,
    MM2_E_FORMAT = -4,
    MM2_E_FULL = -5,
    MM2_E_BUSY = -6,
    MM2_E_UNSUPPORTED = -7,
    MM2_E_NUMERIC = -8,
};
uint32_t mm2_abi(void);
const char *mm2_version(void);
const char *mm2_error(void);
const char *mm2_cpu(void);
int64_t mm2_memory_present(void);
int64_t mm2_memory_available(void);
enum {
    MM2_F32 = 1,
    MM2_F16 = 2,
    MM2_BF16 = 3,
    MM2_F8_E4M3 = 4,
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
    MM2_NVFP4 = 29,
    MM2_U8 = 30,
    MM2_F4_16 = 31,
    MM2_F4_32 = 32,
    MM2_I4 = 33,
    MM2_I8 = 34,
    MM2_INT8 = 35,
    MM2_DTYPE_COUNT = 36,
};
enum {
    MM2_READ_ONLY = 1,
    MM2_PART = 2,
};
typedef struct mm2_tensor {
    void *data;
    int64_t shape[4];
    int64_t strides[4];
    int64_t nbytes;
    int32_t ndim;
    int32_t dtype;
    uint32_t flags;
    uint32_t reserved;
} mm2_tensor;
const char *mm2_dtype_name(int32_t dtype);
int32_t mm2_dtype_block(int32_t dtype);
int32_t mm2_dtype_bytes(int32_t dtype);
mm2_status mm2_tensor_decode(const mm2_tensor *t, float *out, int64_t n);
typedef struct mm2_model mm2_model;
typedef struct mm2_tokenizer mm2_tokenizer;
enum {
    MM2_WRITABLE = 1,
    MM2_IN_MEMORY = 2,
};
enum {
    MM2_ISA_AUTO = 0,
    MM2_ISA_REF = 1,
    MM2_ISA_AVX2 = 2,
    MM2_ISA_AVX512 = 3,
    MM2_ISA_AMX = 4,
    MM2_ISA_BLAS = 5,
};
enum {
    MM2_PRECISION_FAST = 0,
    MM2_PRECISION_EXACT = 1,
};
typedef struct mm2_model_options {
    uint32_t size;
    uint32_t flags;
    int32_t threads;
    int32_t isa;
    int32_t precision;
    int32_t reserved;
    int64_t prefix_cache;
    const char *prefix_folder;
    int64_t prefix_disk;
} mm2_model_options;
void mm2_model_options_init(mm2_model_options *o);
mm2_status mm2_model_open(mm2_model **out, const char *path, const mm2_model_options *o);
void mm2_model_retain(mm2_model *m);
void mm2_model_release(mm2_model *m);
typedef struct mm2_config {
    uint32_t size;
    int32_t num_hidden_layers;
    int32_t hidden_size;
    int32_t num_attention_heads;
    int32_t num_key_value_heads;
    int32_t head_dim;
    int32_t rotary_dim;
    int32_t num_local_experts;
    int32_t num_experts_per_tok;
    int32_t intermediate_size;
    int32_t vocab_size;
    int32_t max_position_embeddings;
    int32_t use_qk_norm;
    int32_t use_routing_bias;
    float rope_theta;
    float rms_norm_eps;
    float routed_scaling_factor;
} mm2_config;
mm2_status mm2_model_config(const mm2_model *m, mm2_config *out);
const char *mm2_model_info(const mm2_model *m, const char *key);
const char *mm2_model_info_key(int32_t index);
int32_t mm2_model_end_tokens(const mm2_model *m, int32_t *ids, int32_t cap);
int32_t mm2_model_threads(const mm2_model *m);
int64_t mm2_model_bytes(const mm2_model *m);
int64_t mm2_model_parameters(const mm2_model *m);
int32_t mm2_model_tensor_count(const mm2_model *m);
const char *mm2_model_tensor_name(const mm2_model *m, int32_t index);
mm2_status mm2_model_tensor(const mm2_model *m, const char *name, mm2_tensor *out);
mm2_status mm2_model_weight_info(const mm2_model *m, const char *name, mm2_tensor *out);
mm2_status mm2_model_weight(const mm2_model *m, const char *name, int64_t first, int64_t count, float *out, int64_t n);
typedef struct mm2_limits {
    uint32_t size;
    int32_t threads;
    double plain_read, best_read;
    double int8_ops, bf16_ops, f32_ops;
} mm2_limits;
mm2_status mm2_model_limits(mm2_model *m, mm2_limits *out);
typedef struct mm2_attention {
    uint32_t size;
    int32_t threads;
    double read;
    double ops;
} mm2_attention;
mm2_status mm2_model_attention(mm2_model *m, int32_t kv_dtype, mm2_attention *out);
typedef struct mm2_cost {
    uint32_t size;
    uint32_t reserved;
    double weight_bytes;
    double kv_bytes;
    double int8_ops, bf16_ops, f32_ops;
} mm2_cost;
mm2_status mm2_model_cost(const mm2_model *m, int32_t tokens, int32_t depth, int32_t kv_dtype, mm2_cost *layers, mm2_cost *rest);
mm2_status mm2_tokenizer_open(mm2_tokenizer **out, const char *path);
void mm2_tokenizer_release(mm2_tokenizer *t);
const mm2_tokenizer *mm2_model_tokenizer(const mm2_model *m);
typedef struct mm2_tokenizer_info {
    uint32_t size;
    int32_t vocab_size;
    int32_t bos, eos, unk, pad;
    int32_t think_open, think_close;
} mm2_tokenizer_info;
mm2_status mm2_tokenizer_describe(const mm2_tokenizer *t, mm2_tokenizer_info *out);
enum {
    MM2_SPECIAL = 1,
};
int32_t mm2_tokenizer_encode(const mm2_tokenizer *t, const char *text, int32_t len, int32_t flags, int32_t *ids, int32_t cap);
typedef struct mm2_encoding mm2_encoding;
mm2_status mm2_encoding_new(mm2_encoding **out, const mm2_tokenizer *t, const char *text, int32_t len, int32_t flags);
void mm2_encoding_free(mm2_encoding *e);
mm2_status mm2_encoding_run(mm2_encoding *e, int32_t budget_us, int32_t *ids, int32_t cap, int32_t *count);
int32_t mm2_tokenizer_decode(const mm2_tokenizer *t, const int32_t *ids, int32_t n, int32_t flags, char *out, int32_t cap);
const char *mm2_tokenizer_token(const mm2_tokenizer *t, int32_t id, int32_t *len);
int32_t mm2_tokenizer_id(const mm2_tokenizer *t, const char *bytes, int32_t len);
int32_t mm2_tokenizer_added(const mm2_tokenizer *t, int32_t *ids, int32_t cap);
int32_t mm2_text_complete(const char *bytes, int32_t len);
enum {
    MM2_GENERATION_PROMPT = 2,
    MM2_NO_THINKING = 4,
    MM2_KEEP_THINKING = 8,
};
typedef struct mm2_conversation {
    uint32_t size;
    int32_t flags;
    const char *messages;
    const char *tools;
    const char *identity;
} mm2_conversation;
int32_t mm2_chat_render(const mm2_tokenizer *t, const mm2_conversation *c, char *out, int32_t cap);
int32_t mm2_chat_encode(const mm2_tokenizer *t, const mm2_conversation *c, int32_t *ids, int32_t cap);
const char *mm2_tokenizer_unknown_template(const mm2_tokenizer *t);
int32_t mm2_chat_continue(const mm2_tokenizer *t, const int32_t *timeline, int32_t length, const mm2_conversation *c, int32_t *ids, int32_t cap);
enum {
    MM2_FORM_OPENAI = 0,
    MM2_FORM_ANTHROPIC = 1,
};
int32_t mm2_chat_export(const char *messages, int32_t form, char *out, int32_t cap);
typedef struct mm2_reply mm2_reply;
enum {
    MM2_START_TEXT = 0,
    MM2_START_THINKING = 1,
    MM2_START_ANSWER = 2,
};
typedef struct mm2_reply_options {
    uint32_t size;
    int32_t start;
    int32_t max_tokens;
    int32_t end_count, stop_count;
    int32_t reserved;
    const int32_t *end_tokens;
    const char *const *stop;
    const int32_t *stop_len;
    const char *tools;
    int32_t max_thinking;
    int32_t reserved2;
    const char *call;
} mm2_reply_options;
void mm2_reply_options_init(mm2_reply_options *o);
enum {
    MM2_END_NONE = 0,
    MM2_END_STOP = 1,
    MM2_END_LENGTH = 2,
    MM2_END_CONTEXT = 3,
    MM2_END_CANCELLED = 4,
    MM2_END_CALLS = 5,
};
typedef struct mm2_piece {
    uint32_t size;
    int32_t end;
    int32_t count;
    int32_t text_len;
    int32_t thinking_len;
    int32_t calls;
    const char *text;
    const char *thinking;
    const char *reason;
    int32_t thought;
    int32_t next;
    int32_t answer_at;
    int32_t reserved;
} mm2_piece;
enum {
    MM2_CALL_OPEN = 0,
    MM2_CALL_COMPLETE = 1,
    MM2_CALL_CUT = 2,
};
typedef struct mm2_call {
    uint32_t size;
    int32_t state;
    int32_t known;
    int32_t text_at;
    int32_t name_len, arguments_len;
    const char *name;
    const char *arguments;
} mm2_call;
mm2_status mm2_reply_new(mm2_reply **out, const mm2_tokenizer *t, const mm2_reply_options *o);
void mm2_reply_free(mm2_reply *r);
mm2_status mm2_reply_push(mm2_reply *r, int32_t id, mm2_piece *piece);
mm2_status mm2_reply_end(mm2_reply *r, int32_t reason, mm2_piece *piece);
mm2_status mm2_reply_all(mm2_reply *r, mm2_piece *piece);
mm2_status mm2_reply_call(mm2_reply *r, int32_t index, mm2_call *call);
typedef struct mm2_grammar mm2_grammar;
typedef struct mm2_constraint mm2_constraint;
enum {
    MM2_GRAMMAR_REGEX = 1,
    MM2_GRAMMAR_CHOICES = 2,
    MM2_GRAMMAR_JSON_SCHEMA = 3,
};
mm2_status mm2_grammar_new(mm2_grammar **out, const mm2_tokenizer *t, int32_t kind, const char *text);
void mm2_grammar_free(mm2_grammar *g);
int32_t mm2_grammar_matches(mm2_grammar *g, const char *text, int32_t len);
typedef struct mm2_constraint_options {
    uint32_t size;
    int32_t start;
    int32_t vocab_size;
    int32_t end_count;
    const int32_t *end_tokens;
} mm2_constraint_options;
void mm2_constraint_options_init(mm2_constraint_options *o);
mm2_status mm2_constraint_new(mm2_constraint **out, mm2_grammar *g, const mm2_constraint_options *o);
mm2_status mm2_constraint_fork(mm2_constraint **out, mm2_constraint *c);
void mm2_constraint_free(mm2_constraint *c);
mm2_status mm2_constraint_mask(mm2_constraint *c, const uint32_t **mask);
mm2_status mm2_constraint_push(mm2_constraint *c, int32_t id);
int32_t mm2_constraint_accepts(mm2_constraint *c);
int32_t mm2_constraint_forced(mm2_constraint *c, int32_t *ids, int32_t cap);
typedef struct mm2_session mm2_session;
typedef struct mm2_session_options {
    uint32_t size;
    int32_t context;
    int32_t kv_dtype;
    int32_t chunk;
} mm2_session_options;
void mm2_session_options_init(mm2_session_options *o);
typedef struct mm2_plan {
    uint32_t size;
    int32_t context, kv_dtype, chunk;
    int64_t weights;
    int64_t cache;
    int64_t cache_page;
    int64_t session;
    int64_t buffers;
    int64_t present;
    int64_t available;
} mm2_plan;
mm2_status mm2_model_plan(mm2_model *m, const mm2_session_options *o, mm2_plan *out);
mm2_status mm2_session_new(mm2_session **out, mm2_model *m, const mm2_session_options *o);
mm2_status mm2_session_fork(mm2_session **out, mm2_session *s);
void mm2_session_free(mm2_session *s);
mm2_status mm2_session_feed(mm2_session *s, const int32_t *ids, int32_t n);
enum {
    MM2_POINT_EMBED = 0,
    MM2_POINT_RESID_PRE = 1,
    MM2_POINT_ATTN_NORM = 2,
    MM2_POINT_Q = 3,
    MM2_POINT_K = 4,
    MM2_POINT_V = 5,
    MM2_POINT_Z = 6,
    MM2_POINT_ATTN_OUT = 7,
    MM2_POINT_RESID_MID = 8,
    MM2_POINT_MLP_NORM = 9,
    MM2_POINT_ROUTER_LOGITS = 10,
    MM2_POINT_EXPERT_INDICES = 11,
    MM2_POINT_EXPERT_WEIGHTS = 12,
    MM2_POINT_MLP_OUT = 13,
    MM2_POINT_RESID_POST = 14,
    MM2_POINT_FINAL_NORM = 15,
    MM2_POINT_LOGITS = 16,
    MM2_POINT_COUNT = 17,
};
const char *mm2_point_name(int32_t point);
mm2_status mm2_session_tap(mm2_session *s, int32_t point, int32_t layer, int32_t on);
enum {
    MM2_EDIT_ADD = 0,
    MM2_EDIT_SET = 1,
    MM2_EDIT_SCALE = 2,
    MM2_EDIT_CLAMP = 3,
    MM2_EDIT_CAP = 4,
    MM2_EDIT_PROJECT = 5,
    MM2_EDIT_KEEP = 6,
    MM2_EDIT_WEIGH = 7,
    MM2_EDIT_CHOOSE = 8,
    MM2_EDIT_COUNT = 9,
};
typedef struct mm2_edit {
    uint32_t size;
    int32_t kind, point;
    int32_t first_layer, end_layer;
    int32_t first, end;
    int32_t at, n;
    int32_t rows;
    int64_t count;
    const float *values;
    float factor, low, high;
} mm2_edit;
mm2_status mm2_session_set_edits(mm2_session *s, const mm2_edit *edits, int32_t n);
typedef struct mm2_event {
    uint32_t size;
    int32_t session;
    int64_t done, total;
    int32_t point, layer;
    int32_t first, count;
    mm2_tensor tensor;
} mm2_event;
mm2_status mm2_session_run(mm2_session *s, int32_t budget_us, mm2_event *event);
void mm2_session_interrupt(mm2_session *s);
int32_t mm2_session_context(const mm2_session *s);
int32_t mm2_session_position(const mm2_session *s);
int32_t mm2_session_length(const mm2_session *s);
int32_t mm2_session_kv_dtype(const mm2_session *s);
int32_t mm2_session_reused(const mm2_session *s);
mm2_status mm2_session_tokens(mm2_session *s, mm2_tensor *out);
mm2_status mm2_session_rewind(mm2_session *s, int32_t length);
mm2_status mm2_session_logits(mm2_session *s, mm2_tensor *out);
mm2_status mm2_session_logprobs(mm2_session *s, const int32_t *ids, int32_t n, float *out);
mm2_status mm2_session_top(mm2_session *s, int32_t n, int32_t *ids, float *logprobs);
enum {
    MM2_DRAFT_MOST = 15,
};
mm2_status mm2_session_speculate(mm2_session *s, int32_t most);
mm2_status mm2_session_draft(mm2_session *s, const int32_t *ids, int32_t n);
typedef struct mm2_speculation {
    uint32_t size;
    int32_t most;
    int32_t closed;
    int32_t reserved;
    int64_t proposed;
    int64_t accepted;
    int64_t runs;
} mm2_speculation;
mm2_status mm2_session_speculation(mm2_session *s, mm2_speculation *out);
mm2_status mm2_session_save(mm2_session *s, const char *path);
typedef struct mm2_restore_options {
    uint32_t size;
    uint32_t flags;
    int32_t context;
    int32_t kv_dtype;
    int32_t chunk;
} mm2_restore_options;
void mm2_restore_options_init(mm2_restore_options *o);
mm2_status mm2_session_restore(mm2_session **out, mm2_model *m, const char *path, const mm2_restore_options *o);
typedef struct mm2_prefix_stats {
    uint32_t size;
    int32_t pages;
    int64_t bytes;
    int64_t limit;
    int64_t reused;
    int64_t added;
    int64_t evicted;
    int64_t read;
    int64_t written;
    int64_t removed;
    int64_t damaged;
    int64_t failed;
    int32_t unwritten;
    int32_t reserved;
    char problem[256];
} mm2_prefix_stats;
mm2_status mm2_model_prefix_stats(mm2_model *m, mm2_prefix_stats *out);
typedef struct mm2_batch mm2_batch;
typedef struct mm2_batch_options {
    uint32_t size;
    int32_t rows;
} mm2_batch_options;
void mm2_batch_options_init(mm2_batch_options *o);
mm2_status mm2_batch_new(mm2_batch **out, mm2_model *m, const mm2_batch_options *o);
void mm2_batch_free(mm2_batch *b);
mm2_status mm2_batch_add(mm2_batch *b, mm2_session *s);
mm2_status mm2_batch_remove(mm2_batch *b, mm2_session *s);
mm2_status mm2_batch_run(mm2_batch *b, int32_t budget_us, mm2_event *event);
typedef struct mm2_sampler mm2_sampler;
typedef struct mm2_sampling {
    uint32_t size;
    int32_t top_k;
    uint64_t seed;
    float temperature;
    float top_p;
    float min_p;
    float typical_p;
    float top_n_sigma;
    float repetition_penalty;
    float presence_penalty;
    float frequency_penalty;
    int32_t penalty_window;
    float dry_multiplier;
    float dry_base;
    int32_t dry_allowed_length;
    int32_t dry_window;
} mm2_sampling;
void mm2_sampling_init(mm2_sampling *o, const mm2_model *m);
mm2_status mm2_sampler_new(mm2_sampler **out, mm2_model *m, const mm2_sampling *o);
void mm2_sampler_free(mm2_sampler *p);
mm2_status mm2_sampler_bias(mm2_sampler *p, const int32_t *ids, const float *values, int32_t n);
mm2_status mm2_sampler_breakers(mm2_sampler *p, const int32_t *ids, int32_t n);
int32_t mm2_sampler_next(mm2_sampler *p, mm2_session *s, const uint32_t *mask);
int32_t mm2_sampler_pick(mm2_sampler *p, const float *logits, const int32_t *history, int32_t n, const uint32_t *mask);
]]
