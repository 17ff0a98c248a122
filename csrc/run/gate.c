/* The gate before proposals: they go through if more tokens a second are expected of them.
 *
 * A run of k proposals brings 1 + p1 + p1 p2 + ... tokens and costs as many runs of one row as was
 * measured. With 8 of 256 experts that is no small number: eight tokens read 35 experts a layer where
 * one reads 8. The k with the most tokens a unit of time is taken, none if that is hardly more than
 * 1.
 *
 * p is the share of tokens that the lookup foretold behind a match of that length; behind the first
 * proposal the match is one longer. It is counted at every token, proposed or not, so that it costs
 * nothing, and text that begins to repeat itself is noticed. Costs are known only of what was tried.
 * For others stands what the model must read, scaled by the nearest number of rows that was tried;
 * and what was not tried for long drifts back there, so that a measurement that something else
 * disturbed is not for ever. What all proposals have cost is held against what they saved: a run may
 * lose what was saved before and a small share of all the time, no more. So first proposals are short,
 * and where they lose, nothing is proposed until the share has grown. */
#include "run/gate.h"

#include <string.h>

static const double least_gain = 1.05; /* over a run of one row */
static const double loss_fixed = 1, loss_share = 1.0 / 128;
static const double most_saved = 8;    /* earlier gains do not pay for more than that */
static const double adapt = 0.25;      /* weight of a new measurement */
static const double drift = 1.0 / 128; /* back to what is expected, with each run of one row */
enum { ONES = 3, WINDOW = 64 };        /* measured before anything is proposed; tests of a class */

static int32_t class_of(int32_t matched)
{
    static const int32_t last[MM2_GATE_CLASSES - 1] = {1, 2, 3, 4, 6, 9, 14};
    int32_t c = 0;
    while (c < MM2_GATE_CLASSES - 1 && matched > last[c])
        c++;
    return c;
}

void mm2_gate_init(mm2_gate *g, const double *expected)
{
    static const double share[MM2_GATE_CLASSES] = {0.1, 0.2, 0.35, 0.5, 0.65, 0.75, 0.85, 0.9};
    memset(g, 0, sizeof *g);
    memcpy(g->expected, expected, sizeof g->expected);
    for (int32_t c = 0; c < MM2_GATE_CLASSES; c++) {
        g->tests[c] = 4;
        g->hits[c] = share[c] * g->tests[c];
    }
}

/* What so many rows are thought to cost. */
static double cost_of(const mm2_gate *g, int32_t rows)
{
    int32_t near = rows;
    if (g->cost[rows] > 0)
        return g->cost[rows];
    while (near > 1 && g->cost[near] <= 0)
        near--;
    for (int32_t above = rows + 1; near == 1 && above <= MM2_GATE_ROWS; above++)
        if (g->cost[above] > 0)
            near = above;
    return near == 1 ? g->expected[rows] : g->expected[rows] * g->cost[near] / g->expected[near];
}

/* A new measurement moves an estimate by an eighth of it at most: something else may have had the
 * processor. */
static double move(double estimate, double measured)
{
    double low = estimate / 2, high = estimate * 1.5;
    measured = measured < low ? low : measured > high ? high : measured;
    return estimate + adapt * (measured - estimate);
}

void mm2_gate_ran(mm2_gate *g, int32_t rows, int64_t nanoseconds)
{
    double time = (double)nanoseconds;
    if (rows == 1) {
        g->one = g->ones ? move(g->one, time) : time;
        g->ones += g->ones < ONES;
        g->spent++;
        for (int32_t r = 2; r <= MM2_GATE_ROWS; r++)
            g->cost[r] += g->cost[r] > 0 ? drift * (g->expected[r] - g->cost[r]) : 0;
    } else if (rows <= MM2_GATE_ROWS && g->one > 0) {
        double before = cost_of(g, rows), cost = time / g->one;
        g->cost[rows] = move(before, cost);
        cost = cost < 2 * before ? cost : 2 * before;
        g->spent += cost;
        g->balance -= cost - 1;
    }
}

void mm2_gate_saved(mm2_gate *g, int32_t tokens)
{
    g->balance += tokens;
    if (g->balance > most_saved)
        g->balance = most_saved;
}

void mm2_gate_judged(mm2_gate *g, int32_t matched, int32_t hit)
{
    int32_t c = class_of(matched);
    if (g->tests[c] >= WINDOW) {
        g->hits[c] /= 2;
        g->tests[c] /= 2;
    }
    g->hits[c] += hit;
    g->tests[c]++;
}

int32_t mm2_gate_choose(const mm2_gate *g, int32_t matched, int32_t most)
{
    double tokens = 1, likely = 1, best = least_gain;
    double limit = 1 + g->balance + loss_fixed + loss_share * g->spent;
    int32_t chosen = 0;
    if (g->ones < ONES)
        return 0;
    if (most > MM2_GATE_ROWS - 1)
        most = MM2_GATE_ROWS - 1;
    for (int32_t k = 1; matched && k <= most; k++) {
        int32_t c = class_of(matched + k - 1);
        likely *= g->hits[c] / g->tests[c];
        tokens += likely;
        double cost = cost_of(g, k + 1);
        if (cost <= limit && tokens / cost > best) {
            best = tokens / cost;
            chosen = k;
        }
    }
    return chosen;
}

int32_t mm2_gate_closed(const mm2_gate *g, int32_t most)
{
    if (g->ones < ONES)
        return 0;
    for (int32_t matched = 1; matched <= 15; matched++)
        if (mm2_gate_choose(g, matched, most))
            return 0;
    return 1;
}
