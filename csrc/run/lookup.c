/* Prompt lookup: what followed an earlier occurrence of the last tokens follows them often again.
 *
 * Among all earlier places the one with the longest match is taken, the last one of several. As long
 * as it goes on to say what comes, it stays the longest: every match of k + 1 tokens was one of k a
 * token earlier. So only where it fails is the timeline read through again. That is one pass over
 * memory which attention reads thousands of times as much of, and it needs no index that would have
 * to grow, to be cut back, and to be copied with a fork: everything it knows are three numbers. */
#include "run/lookup.h"

#include <string.h>

/* How many tokens before `at` equal the last ones, up to the most. */
static int32_t match(const int32_t *tokens, int32_t n, int32_t at)
{
    int32_t matched = 0;
    while (matched < MM2_MATCH_MOST && matched < at &&
           tokens[at - 1 - matched] == tokens[n - 1 - matched])
        matched++;
    return matched;
}

static void search(mm2_lookup *l, const int32_t *tokens, int32_t n)
{
    l->matched = 0;
    for (int32_t at = n - 1; at > 0 && l->matched < MM2_MATCH_MOST; at--) {
        if (tokens[at - 1] != tokens[n - 1])
            continue;
        int32_t matched = match(tokens, n, at);
        if (matched > l->matched) {
            l->matched = matched;
            l->at = at;
        }
    }
}

int32_t mm2_lookup_follow(mm2_lookup *l, const int32_t *tokens, int32_t n)
{
    int32_t judged = -1, added = n - l->length;
    if (!added)
        return -1;
    l->length = n;
    if (added == 1 && l->matched)
        judged = tokens[l->at] == tokens[n - 1];
    if (judged == 1) {
        l->at++;
        l->matched += l->matched < MM2_MATCH_MOST;
    } else {
        search(l, tokens, n);
    }
    return judged;
}

void mm2_lookup_read(const mm2_lookup *l, const int32_t *tokens, int32_t n, int32_t *out)
{
    for (int32_t i = 0; i < n; i++) /* behind the end of a repetition it goes on with itself */
        out[i] = l->at + i < l->length ? tokens[l->at + i] : out[l->at + i - l->length];
}
