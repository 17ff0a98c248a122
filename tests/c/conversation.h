/* Plain turns as the JSON that the chat functions take, and those functions on them. Include after
 * cmocka.h. */
#ifndef CONVERSATION_H
#define CONVERSATION_H

#include "minimax2.h"

#include <stdlib.h>
#include <string.h>

typedef struct message {
    const char *role, *content, *thinking; /* a NULL is left out */
} message;

/* A message. */
#define M(role, content, thinking)                                                                 \
    {                                                                                              \
        role, content, thinking                                                                    \
    }

static char *put_field(char *out, const char *name, const char *text)
{
    static const char hex[] = "0123456789abcdef";
    if (!text)
        return out;
    *out = out[-1] == '{' ? ' ' : ',';
    out++;
    *out++ = '"';
    out = stpcpy(out, name);
    out = stpcpy(out, "\": \"");
    for (; *text; text++) {
        uint8_t c = (uint8_t)*text;
        if (c < 0x20 || c == '"' || c == '\\') {
            out = stpcpy(out, "\\u00");
            *out++ = hex[c >> 4];
            *out++ = hex[c & 15];
        } else {
            *out++ = (char)c;
        }
    }
    *out++ = '"';
    *out = 0;
    return out;
}

/* Owned. */
static char *to_json(const message *m, int32_t n)
{
    size_t size = 16;
    for (int32_t i = 0; i < n; i++)
        size += 64 + 6 * ((m[i].role ? strlen(m[i].role) : 0) +
                          strlen(m[i].content ? m[i].content : "") +
                          strlen(m[i].thinking ? m[i].thinking : ""));
    char *json = malloc(size), *out = json;
    if (!json)
        return NULL;
    *out++ = '[';
    for (int32_t i = 0; i < n; i++) {
        out = stpcpy(out, i ? ", {" : "{");
        out = put_field(out, "role", m[i].role);
        out = put_field(out, "content", m[i].content);
        out = put_field(out, "thinking", m[i].thinking);
        *out++ = '}';
    }
    strcpy(out, "]");
    return json;
}

static inline int32_t render(const mm2_tokenizer *t, const message *m, int32_t n, int32_t flags,
                             char *out, int32_t cap)
{
    char *json = to_json(m, n);
    mm2_conversation c = {.size = sizeof c, .flags = flags, .messages = json};
    int32_t length = json ? mm2_chat_render(t, &c, out, cap) : MM2_E_NOMEM;
    free(json);
    return length;
}

static inline int32_t encode_turns(const mm2_tokenizer *t, const message *m, int32_t n,
                                   int32_t flags, int32_t *ids, int32_t cap)
{
    char *json = to_json(m, n);
    mm2_conversation c = {.size = sizeof c, .flags = flags, .messages = json};
    int32_t count = json ? mm2_chat_encode(t, &c, ids, cap) : MM2_E_NOMEM;
    free(json);
    return count;
}

static inline int32_t go_on(const mm2_tokenizer *t, const int32_t *timeline, int32_t length,
                            const message *m, int32_t n, int32_t flags, int32_t *ids, int32_t cap)
{
    char *json = to_json(m, n);
    mm2_conversation c = {.size = sizeof c, .flags = flags, .messages = json};
    int32_t count = json ? mm2_chat_continue(t, timeline, length, &c, ids, cap) : MM2_E_NOMEM;
    free(json);
    return count;
}

#endif
