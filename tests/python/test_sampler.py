"""The sampler against a reference in numpy that sorts everything and counts in float64.

A case is skipped only where the reference itself stands on a boundary: a cumulative probability, a
threshold or a draw within 1e-9 of it, or two equally typical tokens on either side of the cut.
There the last bit of a sum decides.
"""

import math

import minimax2 as mm
import numpy as np
import pytest

NEUTRAL = dict(
    temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0, top_n_sigma=0.0,
    repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0, penalty_window=-1,
    dry_multiplier=0.0, dry_base=1.75, dry_allowed_length=2, dry_window=-1, seed=0)  # fmt: skip
MARGIN = 1e-9


@pytest.fixture(scope="module")
def model():
    with mm.load() as model:
        yield model


@pytest.fixture(scope="module")
def vocab(model):
    return model.config.vocab_size


def pick(model, logits, history=(), mask=None, bias=None, breakers=(), **options):
    sampler = mm.Sampler(model, bias=bias, breakers=breakers, **{**NEUTRAL, **options})
    return sampler.pick(logits, history, mask)


# ---- The reference ----


def mix(z):
    """SplitMix64's output function on Python integers."""
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def uniform(seed, position):
    golden = 0x9E3779B97F4A7C15
    state = mix((seed + golden) % 2**64)
    return (mix((state + (position + 1) * golden) % 2**64) >> 11) / 2**53


def last(history, window):
    return list(history) if window < 0 else list(history)[max(len(history) - window, 0):]


def dry_lengths(seen, breakers):
    """Token -> tokens before it that repeat the end of `seen`, at most."""
    longest = {}
    for i in range(len(seen) - 1):
        length = 0
        while length <= i and seen[i - length] == seen[-1 - length] not in breakers:
            length += 1
        if seen[i + 1] not in breakers:
            longest[seen[i + 1]] = max(longest.get(seen[i + 1], 0), length)
    return longest


def adjusted(logits, history, mask, bias, breakers, o):
    """Mask, bias, penalties and DRY: float32 as the logits are."""
    f32 = np.float32
    x = logits.astype(f32)
    if mask is not None:
        allowed = np.unpackbits(mask.view(np.uint8), bitorder="little")[: x.size]
        x[allowed == 0] = -np.inf
    for token, value in (bias or {}).items():
        x[token] += f32(value)
    seen = last(history, o["penalty_window"])
    for token in set(seen):
        penalty = f32(o["repetition_penalty"])
        x[token] = x[token] / penalty if x[token] > 0 else x[token] * penalty
        x[token] -= f32(o["presence_penalty"] + o["frequency_penalty"] * seen.count(token))
    if o["dry_multiplier"]:
        for token, length in dry_lengths(last(history, o["dry_window"]), breakers).items():
            excess = length - o["dry_allowed_length"]
            if excess >= 0:
                x[token] -= f32(o["dry_multiplier"] * o["dry_base"] ** excess)
    return x


def share(probabilities, wanted):
    """Length of the smallest prefix with this share of the sum, and the distance to the next."""
    cumulative = np.cumsum(probabilities) / probabilities.sum()
    length = min(int(np.searchsorted(cumulative, wanted)) + 1, cumulative.size)
    return length, np.abs(cumulative - wanted).min()


def reference(x, o):
    """Candidates in the order of the draw, their probabilities, and the smallest margin met."""
    order = np.lexsort((np.arange(x.size), -x))
    order = order[x[order] > -np.inf]
    s = (x[order].astype(np.float64) - x[order[0]]) / o["temperature"]
    p = np.exp(s)
    margins = [1.0]
    filtered = bool(0 < o["top_k"] < x.size)
    if filtered:
        order, s, p = order[: o["top_k"]], s[: o["top_k"]], p[: o["top_k"]]
    if o["top_p"] < 1:
        length, margin = share(p, o["top_p"])
        order, s, p = order[:length], s[:length], p[:length]
        margins.append(margin)
    if o["min_p"] > 0:
        keep = p >= o["min_p"]
        margins.append(np.abs(p - o["min_p"]).min())
        order, s, p = order[keep], s[keep], p[keep]
    if o["typical_p"] < 1:
        q = p / p.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy = -np.sum(np.where(q > 0, q * np.log(q), 0))
        distance = np.abs(-(s - np.log(p.sum())) - entropy).astype(np.float32)
        by = np.lexsort((order, distance))
        length, margin = share(p[by], o["typical_p"])
        if length < by.size:  # the logarithms above are good to 1e-7 in float32
            gap = distance[by[length]] - distance[by[length - 1]]
            margin = min(margin, max(gap - 1e-6, 0))
        margins.append(margin)
        keep = np.sort(by[:length])
        order, s, p = order[keep], s[keep], p[keep]
    if o["top_n_sigma"] > 0:
        allowed = x[x > -np.inf].astype(np.float64)
        lowest = allowed.max() - o["top_n_sigma"] * allowed.std()
        margins.append(np.abs(x[order] - lowest).min())
        keep = x[order] >= lowest
        keep[0] = True  # typical_p may have dropped all that sigma would keep
        order, s, p = order[keep], s[keep], p[keep]
    if not filtered and all(o[k] == NEUTRAL[k] for k in ("top_p", "min_p", "typical_p",
                                                         "top_n_sigma")):
        by = np.argsort(order)  # nothing was filtered: ascending ids
        order, p = order[by], p[by]
    return order, p / p.sum(), min(margins)


def random_case(rng, vocab):
    """Logits, history, mask, bias, breakers and options; every feature in about half the cases."""
    def maybe(value, neutral):
        return value if rng.random() < 0.5 else neutral

    logits = (rng.normal(size=vocab) * rng.choice([0.3, 1, 3, 10])).astype(np.float32)
    if rng.random() < 0.3:
        logits = np.round(logits)  # ties
    few = rng.integers(0, vocab, rng.integers(1, 12))
    history = [int(i) for i in rng.choice(few, rng.integers(0, 80))]
    mask = None
    if rng.random() < 0.3:
        mask = rng.integers(0, 2**32, (vocab + 31) // 32, dtype=np.uint32)
    bias = {int(i): float(np.float32(rng.normal() * 3)) for i in rng.integers(0, vocab, 5)}
    # Options are float32 in the library, so the reference takes values that are exact there.
    f32 = lambda value: float(np.float32(value))  # noqa: E731
    o = dict(
        temperature=f32(maybe(rng.uniform(0.2, 3), 1)),
        top_k=int(maybe(rng.choice([1, 2, 40, 100, vocab - 1, vocab, vocab + 1]), 0)),
        top_p=f32(maybe(rng.choice([0.0, 0.1, 0.5, 0.95, 0.999]), 1)),
        min_p=f32(maybe(rng.choice([0.001, 0.05, 0.5]), 0)),
        typical_p=f32(maybe(rng.choice([0.0, 0.2, 0.9, 0.99]), 1)),
        top_n_sigma=f32(maybe(rng.choice([0.5, 1, 3]), 0)),
        repetition_penalty=f32(maybe(rng.uniform(0.7, 1.5), 1)),
        presence_penalty=f32(maybe(rng.uniform(-1, 2), 0)),
        frequency_penalty=f32(maybe(rng.uniform(-1, 1), 0)),
        penalty_window=int(rng.choice([-1, 0, 1, 10, 200])),
        dry_multiplier=f32(maybe(rng.uniform(0.1, 2), 0)),
        dry_base=f32(maybe(1.75, 1)),
        dry_allowed_length=int(rng.integers(1, 4)),
        dry_window=int(rng.choice([-1, 0, 5, 30, 200])))  # fmt: skip
    breakers = [int(i) for i in few[:2]] if rng.random() < 0.5 else []
    return logits, history, mask, maybe(bias, None), breakers, o


SEEDS = range(3000)


@pytest.mark.parametrize("block", range(8))
def test_candidates_and_draws_equal_the_reference(model, vocab, block):
    """Seeds are chosen so that the draw falls on the first, the last and twelve other candidates:
    so the set and its order are compared, not one token of it."""
    draws = {}
    compared = 0
    for case in range(40):
        rng = np.random.default_rng([block, case])
        logits, history, mask, bias, breakers, o = random_case(rng, vocab)
        before = logits.copy()
        x = adjusted(logits, history, mask, bias, breakers, o)
        order, p, margin = reference(x, o)
        if margin < MARGIN:
            continue
        n = len(history)
        if n not in draws:
            draws[n] = np.array([uniform(seed, n) for seed in SEEDS])
        ends = np.cumsum(p)
        wanted = {0, order.size - 1, *rng.integers(0, order.size, 12).tolist()}
        for i in wanted:
            low, high = ends[i] - p[i] + MARGIN, ends[i] - MARGIN
            inside = np.flatnonzero((draws[n] > low) & (draws[n] < high))
            if inside.size:
                chosen = pick(model, logits, history, mask, bias, breakers,
                              **o | {"seed": int(inside[0])})
                assert chosen == order[i], (block, case, i, o)
                compared += 1
        assert np.array_equal(logits, before)
    assert compared > 50


@pytest.mark.parametrize("case", range(30))
def test_greedy_is_the_first_of_the_best(model, vocab, case):
    rng = np.random.default_rng([99, case])
    logits, history, mask, bias, breakers, o = random_case(rng, vocab)
    best = int(np.argmax(adjusted(logits, history, mask, bias, breakers, o)))
    assert pick(model, logits, history, mask, bias, breakers, **o | {"temperature": 0}) == best


@pytest.mark.parametrize("options", [
    dict(),
    dict(temperature=0.7, top_k=40, top_p=0.95),
    dict(temperature=1.5, min_p=0.02),
    dict(typical_p=0.8),
    dict(top_n_sigma=2.0),
])  # fmt: skip
def test_frequencies_match_probabilities(model, vocab, options):
    """Chi-square over 200 seeds x 60 positions, and over pairs of neighbouring positions and seeds.
    The draws are fixed, so the test passes always or never."""
    rng = np.random.default_rng(5)
    logits = np.full(vocab, -np.inf, np.float32)
    ids = rng.permutation(vocab)[:12]
    logits[ids] = rng.normal(size=12)
    order, p, _ = reference(logits, NEUTRAL | {k: float(np.float32(v)) if k != "top_k" else v
                                               for k, v in options.items()})
    rank = {int(token): i for i, token in enumerate(order)}
    drawn = np.empty((200, 60), int)
    zeros = [0] * 60  # without penalties history is only the position
    for row in range(200):
        sampler = mm.Sampler(model, **{**NEUTRAL, **options, "seed": 1000 + row})
        drawn[row] = [rank[sampler.pick(logits, zeros[:n])] for n in range(60)]

    def chi_square(counts, probabilities):
        expected = probabilities * counts.sum()
        assert expected.min() > 5
        freedom = counts.size - 1
        value = float(((counts - expected) ** 2 / expected).sum())
        assert value < freedom + 3 * math.sqrt(2 * freedom)

    chi_square(np.bincount(drawn.ravel(), minlength=p.size), p)
    half = (drawn >= p.size // 2).astype(int)  # pairs of a coarser event
    low = p[: p.size // 2].sum()
    pairs = np.outer([low, 1 - low], [low, 1 - low]).ravel()
    chi_square(np.bincount((2 * half[:, ::2] + half[:, 1::2]).ravel(), minlength=4), pairs)
    chi_square(np.bincount((2 * half[::2] + half[1::2]).ravel(), minlength=4), pairs)


def test_neutral_values_change_nothing(model, vocab):
    rng = np.random.default_rng(6)
    logits = rng.normal(size=vocab).astype(np.float32)
    history = [int(i) for i in rng.integers(0, 4, 50)]
    order, p, _ = reference(logits, NEUTRAL)
    everything = np.full((vocab + 31) // 32, 0xFFFFFFFF, np.uint32)
    for seed in range(40):
        u = uniform(seed, 50)
        plain = int(order[np.searchsorted(np.cumsum(p), u, side="right")])
        same = [
            dict(),
            dict(mask=everything),
            dict(bias={}),
            dict(bias={3: 0.0}),
            dict(breakers=[0, 1, 2, 3]),
            dict(repetition_penalty=5.0, presence_penalty=5.0, frequency_penalty=5.0,
                 penalty_window=0),
            dict(dry_multiplier=5.0, dry_window=0),
            dict(dry_multiplier=5.0, dry_window=1),
            dict(dry_multiplier=5.0, dry_allowed_length=51),
            dict(dry_multiplier=5.0, breakers=[0, 1, 2, 3]),
            dict(dry_multiplier=0.0, dry_base=9.0, dry_allowed_length=1),
            dict(top_k=vocab),
        ]  # fmt: skip
        for options in same:
            assert pick(model, logits, history, seed=seed, **options) == plain, options


def test_each_feature_has_its_effect(model, vocab):
    """Greedy between two tokens, or a set of one: the smallest case of each."""
    def two(first, second):
        logits = np.full(vocab, -100, np.float32)
        logits[10], logits[20] = first, second
        return logits

    greedy = dict(temperature=0.0)
    assert pick(model, two(1, 0.9), **greedy) == 10
    assert pick(model, two(1, 0.9), [10], repetition_penalty=1.2, **greedy) == 20
    assert pick(model, two(-0.9, -1), [10], repetition_penalty=1.2, **greedy) == 20
    assert pick(model, two(1, 0.9), [10], presence_penalty=0.2, **greedy) == 20
    assert pick(model, two(1, 0.9), [10, 10], frequency_penalty=0.04, **greedy) == 10
    assert pick(model, two(1, 0.9), [10] * 3, frequency_penalty=0.04, **greedy) == 20
    assert pick(model, two(1, 0.9), [10, 5, 5], presence_penalty=1.0, penalty_window=2,
                **greedy) == 10
    assert pick(model, two(1, 0.9), bias={20: 0.2}, **greedy) == 20
    assert pick(model, two(1, 0.9), bias={10: -math.inf}, **greedy) == 20
    # 7 8 9 10 ... 7 8 9: 10 would repeat a sequence of four.
    history = [7, 8, 9, 10, 1, 2, 7, 8, 9]
    dry = dict(dry_multiplier=0.05, dry_base=2.0, **greedy)
    assert pick(model, two(1, 0.94), history, dry_allowed_length=3, **dry) == 10
    assert pick(model, two(1, 0.94), history, dry_allowed_length=2, **dry) == 20
    assert pick(model, two(1, 0.94), history, dry_allowed_length=4, **dry) == 10
    assert pick(model, two(1, 0.94), history, dry_allowed_length=2, breakers=[8], **dry) == 10
    assert pick(model, two(1, 0.94), history, dry_allowed_length=2, breakers=[10], **dry) == 10
    assert pick(model, two(1, 0.94), history, dry_allowed_length=2, dry_window=8, **dry) == 10
    draws = [pick(model, two(0, 0), seed=seed) for seed in range(50)]
    assert set(draws) == {10, 20}
    for options in (dict(top_k=1), dict(top_p=0.4), dict(min_p=0.6), dict(typical_p=0.1),
                    dict(top_n_sigma=1e-3), dict(temperature=1e-3)):
        logits = two(0.7, 0)
        assert {pick(model, logits, seed=seed, **options) for seed in range(50)} == {10}, options


def test_same_seed_same_tokens(model, vocab):
    logits = np.zeros(vocab, np.float32)
    for seed in (0, 1, 2**63, 2**64 - 1):
        sampler = mm.Sampler(model, **NEUTRAL | {"seed": seed})
        forward = [sampler.pick(logits, [0] * n) for n in range(20)]
        backward = [sampler.pick(logits, [0] * n) for n in reversed(range(20))]
        assert forward == backward[::-1]
        assert forward == [int(uniform(seed, n) * vocab) for n in range(20)]


def test_logits_that_leave_nothing_to_choose(model, vocab):
    sampler = mm.Sampler(model)
    logits = np.zeros(vocab, np.float32)
    nothing = np.zeros((vocab + 31) // 32, np.uint32)
    with pytest.raises(mm.NumericError, match="forbid all"):
        sampler.pick(logits, (), nothing)
    with pytest.raises(mm.NumericError, match="forbid all"):
        sampler.pick(np.full(vocab, -np.inf, np.float32))
    logits[vocab - 1] = np.nan
    with pytest.raises(mm.NumericError, match=f"logit {vocab - 1} is NaN"):
        sampler.pick(logits)
    logits[vocab - 1] = np.inf
    assert sampler.pick(logits) == vocab - 1
    logits[3] = np.inf
    assert sampler.pick(logits) == 3


@pytest.mark.parametrize("field, value", [
    ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf), ("top_k", -1),
    ("top_p", 1.1), ("top_p", -0.1), ("min_p", 1.1), ("typical_p", -1.0), ("top_n_sigma", -1.0),
    ("repetition_penalty", 0.0), ("presence_penalty", math.inf), ("frequency_penalty", math.nan),
    ("penalty_window", -2), ("dry_multiplier", -1.0), ("dry_base", 0.5), ("dry_allowed_length", 0),
    ("dry_window", -2),
])  # fmt: skip
def test_options_out_of_range(model, field, value):
    with pytest.raises(mm.ArgumentError, match=field):
        mm.Sampler(model, **{field: value})


def test_tokens_outside_the_vocabulary(model, vocab):
    sampler = mm.Sampler(model)
    logits = np.zeros(vocab, np.float32)
    for history in ([vocab], [0, -1]):
        with pytest.raises(mm.ArgumentError, match="outside the vocabulary"):
            sampler.pick(logits, history)
    with pytest.raises(mm.ArgumentError, match="outside the vocabulary"):
        mm.Sampler(model, bias={vocab: 1.0})
    with pytest.raises(mm.ArgumentError, match="outside the vocabulary"):
        mm.Sampler(model, breakers=[-1])
    with pytest.raises(mm.ArgumentError, match="NaN"):
        mm.Sampler(model, bias={0: math.nan})


def test_buffers_of_the_wrong_size_are_refused(model, vocab):
    """The library trusts the size it is promised: the binding has to check."""
    sampler = mm.Sampler(model)
    words = (vocab + 31) // 32
    for logits in (np.zeros(vocab - 1, np.float32), np.zeros(vocab + 1, np.float32)):
        with pytest.raises(ValueError):
            sampler.pick(logits)
    with pytest.raises((ValueError, TypeError)):
        sampler.pick(np.zeros(vocab, np.float64))
    with pytest.raises(ValueError):
        sampler.pick(np.zeros(vocab, np.float32), (), np.zeros(words - 1, np.uint32))
