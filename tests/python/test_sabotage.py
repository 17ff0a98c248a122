"""Would the golden values notice? The library is broken on purpose, one line at a time.

Every mutation is a mistake that somebody's implementation of this model made, or could make. A copy
of csrc gets the wrong line, what depends on it is compiled again, and the golden prompts must come
out far beyond the tolerance of test_golden.py. The same procedure without a mutation must stay
within it. A mutation whose line is not found any more fails: move it along with the code.
"""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
sys.path.insert(0, str(GOLDEN))
import checkpoints  # noqa: E402
from checkpoints import CASES  # noqa: E402

# Of the largest logit, as in test_golden.py.
TOLERANCE = {"exact": 1e-5, "fast": 5e-3}
CAUGHT = 1e-2  # a mutation must move a logit by more than this share, or change a clear best token

# Cases, prompt lengths and precisions that every library runs; together they take about a second.
JOBS = [("half", 300, "exact"), ("quarter", 40, "exact"), ("one-kv", 40, "exact"),
        ("fp8", 40, "exact"), ("fp8", 40, "fast"), ("twins", 40, "exact")]


@dataclasses.dataclass(frozen=True)
class Mutation:
    name: str
    file: str
    line: str  # occurs once in the file
    wrong: str


# fmt: off
MUTATIONS = [
    # Router
    Mutation("routing bias dropped", "run/moe.c",
             "if (bias->data) {",
             "if (0) {"),
    Mutation("routing bias in the weights", "run/moe.c",
             "p->model->kernels->axpy(choice, 1, scores, experts);",
             "p->model->kernels->axpy(choice, 1, scores, experts);"
             " memcpy(scores, choice, experts * 4);"),
    Mutation("weights not renormalised", "run/moe.c",
             "scores[chosen[i]] / sum *",
             "scores[chosen[i]] *"),
    Mutation("softmax for sigmoid", "run/moe.c",
             "p->model->kernels->sigmoid(scores, b->router + (int64_t)unit * experts, experts);",
             "const float *x = b->router + (int64_t)unit * experts; float all = 0;"
             " for (int e = 0; e < experts; e++) all += mm2_exp(x[e]);"
             " for (int e = 0; e < experts; e++) scores[e] = mm2_exp(x[e]) / all;"),
    Mutation("ties to the higher expert", "run/moe.c",
             "choice[e] > choice[chosen[at - 1]]",
             "choice[e] >= choice[chosen[at - 1]]"),
    # Experts
    Mutation("gate and up swapped", "run/moe.c",
             "multiply_expert(p, &expert->gate, e, k, s->a, first, count, thread);\n"
             "    multiply_expert(p, &expert->up, e, k, s->b, first, count, thread);",
             "multiply_expert(p, &expert->gate, e, k, s->b, first, count, thread);\n"
             "    multiply_expert(p, &expert->up, e, k, s->a, first, count, thread);"),
    Mutation("experts off by one", "model/experts.h",
             "&w->layers[layer].experts[expert]",
             "&w->layers[layer].experts[expert ? expert - 1 : 0]"),
    Mutation("expert weights in the order of another row", "run/moe.c",
             "b->expert_weights[slots[r]]",
             "b->expert_weights[slots[0]]"),
    Mutation("ReLU for SiLU", "kernels/ref_vectors.c",
             "gate[i] / (1 + mm2_exp(-gate[i])) * up[i]",
             "(gate[i] > 0 ? gate[i] : 0) * up[i]"),
    # Norms
    Mutation("q norm per head", "run/gqa.c",
             "mm2_pass_norm(p, thread, &layer->q_norm, q, q, layer->q.n_out);",
             "int32_t n = mm2_pass_config(p)->head_dim;"
             " for (int32_t at = 0; at < layer->q.n_out; at += n) {"
             " mm2_weight w = layer->q_norm;"
             " w.data = (const char *)w.data + at * (w.row_bytes / w.n_in);"
             " mm2_pass_norm(p, thread, &w, q + at, q + at, n); }"),
    Mutation("q and k not normed", "run/gqa.c",
             "if (!layer->q_norm.data)",
             "if (1)"),
    Mutation("norm weights with one added", "kernels/ref_vectors.c",
             "out[i] = x[i] * r * w[i];",
             "out[i] = x[i] * r * (1 + w[i]);"),
    Mutation("eps of another model", "model/directory.c",
             "status = mm2_config_check(&c->config, s->where);",
             "status = (c->config.rms_norm_eps = 1e-6f,\n"
             "                  mm2_config_check(&c->config, s->where));"),
    Mutation("eps outside of the root", "kernels/ref_vectors.c",
             "sqrtf(tree(lane) / (float)n + eps)",
             "(sqrtf(tree(lane) / (float)n) + eps)"),
    # Rotation
    Mutation("whole head rotated", "model/directory.c",
             "c->rotary_dim = (int32_t)rotary;",
             "c->rotary_dim = c->head_dim;"),
    Mutation("neighbours rotated, not halves", "kernels/ref_vectors.c",
             "float a = x[i], b = x[i + half];\n"
             "        x[i] = fmaf(a, cosine[i], -(b * sine[i]));\n"
             "        x[i + half] = fmaf(a, sine[i], b * cosine[i]);",
             "float a = x[2 * i], b = x[2 * i + 1];\n"
             "        x[2 * i] = fmaf(a, cosine[i], -(b * sine[i]));\n"
             "        x[2 * i + 1] = fmaf(a, sine[i], b * cosine[i]);"),
    Mutation("rotated the other way for keys", "run/gqa.c",
             "p->model->kernels->rope(k + head * n, cosine, sine, half);",
             "p->model->kernels->rope(k + head * n, sine, cosine, half);"),
    Mutation("theta of another model", "model/directory.c",
             "c->rope_theta = (float)theta;",
             "c->rope_theta = 1e6f;"),
    Mutation("positions start again in every chunk", "run/gqa.c",
             "half, p->row_position[unit]);",
             "half, p->row_position[unit] - p->spans[p->row_span[unit]].first);"),
    # Attention
    Mutation("mask lets the next token in", "run/gqa.c",
             "int32_t here = p->row_position[row] + 1 - page",
             "int32_t here = p->row_position[row] + 1 + (p->row_position[row] % 64 < 63) - page"),
    Mutation("mask hides the token itself", "run/gqa.c",
             "int32_t here = p->row_position[row] + 1 - page",
             "int32_t here = p->row_position[row] + !p->row_position[row] - page"),
    Mutation("scores scaled by the wrong width", "run/gqa.c",
             "1 / sqrtf((float)g->head_dim)",
             "1 / sqrtf((float)g->rotary_dim)"),
    Mutation("every head reads the first KV head", "run/gqa.c",
             "keys(t, p->layer, head, page)",
             "keys(t, p->layer, 0, page)"),
    Mutation("earlier chunks forgotten", "kernels/ref_vectors.c",
             "o[d] = fmaf(attend_sum(dtype, p, other, n), b, o[d] * a);",
             "o[d] = attend_sum(dtype, p, other, n) * b;"),
    Mutation("chunks added without rescaling", "kernels/ref_vectors.c",
             "o[d] = fmaf(attend_sum(dtype, p, other, n), b, o[d] * a);",
             "o[d] = fmaf(attend_sum(dtype, p, other, n), b, o[d] * (a > 0));"),
    # Weights
    Mutation("FP8 scales transposed", "kernels/weight.c",
             "w->scale[(w->scale_row + row) / SCALE_BLOCK * blocks + k / SCALE_BLOCK]",
             "w->scale[k / SCALE_BLOCK * ((w->n_out + SCALE_BLOCK - 1) / SCALE_BLOCK)"
             " + (w->scale_row + row) / SCALE_BLOCK]"),
    Mutation("FP8 scales divide in exact products", "kernels/ref.c",
             "total[j] = fmaf(t[j], mm2_weight_scale(w, first + i, k), total[j]);",
             "total[j] = fmaf(t[j], 1 / mm2_weight_scale(w, first + i, k), total[j]);"),
    Mutation("FP8 scales divide in fast products", "kernels/ref.c",
             "y = fmaf(mm2_weight_scale(w, first + i, k), c, y);",
             "y = fmaf(1 / mm2_weight_scale(w, first + i, k), c, y);"),
    Mutation("odd activations taken for even ones", "kernels/ref.c",
             "mm2_bf16_f32(x[k])",
             "mm2_bf16_f32(x[k - odd])"),
    Mutation("bf16 activations of the row before", "run/product.c",
             "in->pointers[kind][r] = base + r * stride;",
             "in->pointers[kind][r] = base + (kind == MM2_ACT_BF16 && r ? r - 1 : r) * stride;"),
    # Stream
    Mutation("blocks replace the stream", "run/pass.c",
             "p->model->kernels->axpy(p->x + at, 1, p->out + at, n);",
             "memcpy(p->x + at, p->out + at, n * 4);"),
    Mutation("logits of the row behind", "run/ends.c",
             "p->h + (int64_t)(span->row + span->rows - span->logits_rows) * n,",
             "p->h + (int64_t)(span->row) * n + (span->rows > 1 ? n : 0),"),
]
# fmt: on


def copy_tree(source, directory):
    """csrc and its objects, with their times, so that make knows what is new."""
    shutil.copytree(source / "csrc", directory / "csrc")
    if (source / "build" / "release").exists():
        shutil.copytree(source / "build" / "release", directory / "build" / "release",
                        ignore=shutil.ignore_patterns("tests", "*.so"))


def build(directory):
    """Compiles what is out of date; returns the library."""
    make = ["make", "-C", directory / "csrc", "CFLAGS=-O1", "../build/release/libminimax2.so"]
    done = subprocess.run(make, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return directory / "build" / "release" / "libminimax2.so"


def mutate(directory, mutation):
    path = directory / "csrc" / mutation.file
    text = path.read_text()
    assert text.count(mutation.line) == 1, f"not found once in {mutation.file}: {mutation.line}"
    path.write_text(text.replace(mutation.line, mutation.wrong))


def excess(ours, theirs, tolerance):
    """How far off: the largest difference as a share of the largest logit, infinite for logits that
    are not numbers, and whether a best token changed that is clear of the tolerance."""
    if ours.shape != theirs.shape or not np.isfinite(ours).all():
        return np.inf, True
    largest = np.abs(theirs).max()
    second, best = np.sort(theirs, 1)[:, -2:].T
    clear = best - second > 2 * tolerance * largest
    changed = (ours.argmax(1) != theirs.argmax(1))[clear].any()
    return np.abs(ours - theirs).max() / largest, bool(changed)


@pytest.fixture(scope="module")
def measure(tmp_path_factory):
    """Name of a mutation, or None -> (largest difference, whether a best token changed, whether all
    differences are within the tolerance).

    All are built and run from the start, as many at a time as there are processors."""
    top = tmp_path_factory.mktemp("sabotage")
    cdef = top / "cdef.h"
    made = ["make", "-s", "-C", ROOT / "csrc", "cdef"]
    cdef.write_bytes(subprocess.run(made, capture_output=True, check=True).stdout)
    copy_tree(ROOT, top / "base")
    build(top / "base")
    jobs = {}
    for name, n, precision in JOBS:
        directory = checkpoints.write_checkpoint(CASES[name], top / f"{name} {precision}")
        jobs[f"{name} {precision}"] = [str(directory), checkpoints.prompt(CASES[name], n).tolist(),
                                       precision]
    (top / "jobs.json").write_text(json.dumps(jobs))

    def run(number, mutation):
        here = top / str(number)
        copy_tree(top / "base", here)
        if mutation:
            mutate(here, mutation)
        library = build(here)
        program = [sys.executable, GOLDEN / "run_library.py", library, cdef, top / "jobs.json"]
        done = subprocess.run([*program, here / "out.npz"], capture_output=True, text=True,
                              timeout=120)
        assert done.returncode == 0, f"the library failed instead of being wrong: {done.stderr}"
        worst, changed, within = 0.0, False, True
        with np.load(here / "out.npz") as ours:
            for name, n, precision in JOBS:
                with np.load(GOLDEN / f"{name}.npz") as theirs:
                    one, other = excess(ours[f"{name} {precision}"], theirs[f"logits_{n}"],
                                        TOLERANCE[precision])
                worst, changed = max(worst, one), changed or other
                within = within and one <= TOLERANCE[precision]
        shutil.rmtree(here)
        return worst, changed, within

    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        runs = {m and m.name: pool.submit(run, i, m) for i, m in enumerate([None, *MUTATIONS])}
        yield lambda name: runs[name].result()
        pool.shutdown(cancel_futures=True)


def test_the_library_as_it_is(measure):
    _, changed, within = measure(None)
    assert within and not changed


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name.replace(" ", "-"))
def test_caught(measure, mutation):
    worst, changed, _ = measure(mutation.name)
    print(f"largest difference {worst:.2g} of the largest logit, best tokens changed: {changed}")
    assert worst > CAUGHT or changed
