"""The same bits, whatever the circumstances: the promise at the head of csrc/minimax2.h.

One small checkpoint in every weight format, in some with precision "exact" or an int8 cache too.
Its logits on the reference level have a committed SHA-256 (tests/golden/hashes.json); every other
level, thread count, division among memory nodes, chunking, budget, tokens evaluated ahead, history
of the session, on disk too, beginning out of a cache of prefixes and company in a batch must give
exactly these.

Every test is one configuration; the summary counts them and the bits that differ (conftest.py).
What happens to a timeline, and two threads beside one and three, are tried with SOME kinds of
weights, which differ in their kernels; with all if MM2_EVERY_KIND is set, as `make test-same` does.
"""

import functools
import json
import os
import pathlib
import sys

import minimax2 as mm
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "golden"))
import checkpoints  # noqa: E402
from make_hashes import (  # noqa: E402
    CASE, HASHES, IDS, KINDS, all_logits, digest, kv_dtype, load, write)

SOME = ("F32", "BF16", "FP8", "Q8_0", "Q4_K", "IQ3_S", "nvfp4 modelopt", "Q4_K exact",
        "FP8 int8 cache")
EVERY = bool(os.environ.get("MM2_EVERY_KIND"))
LEVELS = ("ref", "avx2", "avx512", "amx")
LEVELS = LEVELS[: LEVELS.index(mm.cpu().split()[0]) + 1]
FAST = LEVELS[1:] or LEVELS
THREADS = (1, 2, 3)
CHUNKS = (1, 7, 64, 256)
ROWS = (33, 511, 512)  # of a chunk, for LONG
LENGTHS = (270, 33, 200)  # of the prompts of a batch: the beginnings of IDS
LONG = np.concatenate([IDS, checkpoints.prompt(CASE, 242)])  # 512
TAIL = 250  # where decoding starts: before the border between two chunks of attention


def session_of(model, kind, context, chunk=None):
    """With the cache of the hashes, also where precision "exact" would have another default."""
    return model.session(context=context, chunk=chunk, kv_dtype=kv_dtype(kind))


@pytest.fixture(scope="module")
def truths(tmp_path_factory):
    """Kind -> (path, float32 [512, vocab_size] by the reference kernels, 64 tokens at a time)."""
    directory = tmp_path_factory.mktemp("bits")

    @functools.cache
    def get(kind):
        path = write(kind, directory)
        with load(kind, path, isa="ref", threads=2) as model:
            return path, all_logits(model, LONG, 64, kind)

    return get


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


def on_some_kinds(test):
    """Leaves a test to SOME kinds; the others are not collected (conftest.py)."""
    return test if EVERY else pytest.mark.only_if(wanted=lambda kind, **_: kind in SOME)(test)


def enough(kind=None, model=(None, 0), **_):
    """Two threads do what three do, unless a kernel divides its work in a way of its own."""
    return EVERY or kind in SOME or model[1] != 2


pytestmark = pytest.mark.only_if(wanted=enough)


@pytest.fixture
def truth(kind, truths):
    """float32 [270, vocab_size]: of IDS."""
    return truths(kind)[1][:len(IDS)]


@pytest.fixture(scope="module", params=[(isa, n) for isa in FAST for n in THREADS],
                ids=lambda p: f"{p[0]}-{p[1]}-threads")
def model(request, kind, truths):
    isa, threads = request.param
    with load(kind, truths(kind)[0], isa=isa, threads=threads) as opened:
        yield opened


@pytest.fixture
def assert_bits(request, bit_tally):
    """Compares float32 arrays bit by bit, and counts."""
    def check(ours, theirs):
        ours, theirs = np.ascontiguousarray(ours), np.ascontiguousarray(theirs)
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype == np.float32
        differing = int(np.unpackbits((ours.view(np.uint8) ^ theirs.view(np.uint8))).sum())
        bit_tally.add(request.node.nodeid, differing)
        assert not differing, f"{differing} bits of {8 * ours.nbytes} differ"
    return check


def test_golden_hash(kind, truth):
    hashes = json.loads(HASHES.read_text())
    assert set(hashes) == set(KINDS)
    assert digest(truth) == hashes[kind], (
        "the bits changed: if that is meant, raise MM2_NUMERICS and run `make golden`")


def test_storage_does_not_matter():
    """F32, F16 and BF16 hold the same values, multiplied alike unless BF16 is to be fast."""
    hashes = json.loads(HASHES.read_text())
    assert hashes["F32"] == hashes["F16"] == hashes["BF16 exact"]
    assert len(set(hashes.values())) == len(hashes) - 2


@pytest.mark.parametrize("threads, chunk", [(1, 7), (3, 256)])
def test_reference_level(kind, truths, threads, chunk, assert_bits):
    path, truth = truths(kind)
    with load(kind, path, isa="ref", threads=threads) as model:
        assert_bits(all_logits(model, IDS[:64], chunk, kind), truth[:64])


@pytest.mark.parametrize("threads, nodes", [(2, 2), (3, 2), (3, 3), (5, 2)])
def test_memory_nodes(kind, truths, threads, nodes, monkeypatch, assert_bits):
    """Each node has its own share of the weights, also when a run stops half-way."""
    path, truth = truths(kind)
    monkeypatch.setenv("MM2_NUMA_FAKE", str(nodes))
    with load(kind, path, threads=threads) as model:
        assert_bits(all_logits(model, IDS, 64, kind), truth[:len(IDS)])
        with session_of(model, kind, context=len(IDS), chunk=100) as session:
            session.feed(IDS)
            slices = 1
            while not session.run(0.00001):
                slices += 1
            assert_bits(session.logits.numpy(), truth[len(IDS) - 1])
            assert slices > 2


@pytest.mark.parametrize("rows", ROWS)
def test_rows(model, kind, truths, rows, assert_bits):
    assert_bits(all_logits(model, LONG, rows, kind), truths(kind)[1])


@pytest.mark.parametrize("chunk", CHUNKS)
def test_prefill(model, kind, truth, chunk, assert_bits):
    assert_bits(all_logits(model, IDS, chunk, kind), truth)


def test_decode(model, kind, truth, assert_bits):
    with session_of(model, kind, context=len(IDS)) as session:
        session.feed(IDS[:TAIL]).run()
        assert_bits(session.logits.numpy(), truth[TAIL - 1])
        for position in range(TAIL, len(IDS)):
            session.feed([int(IDS[position])]).run()
            assert_bits(session.logits.numpy(), truth[position])


@on_some_kinds
def test_ahead(model, kind, truth, assert_bits):
    """Tokens are evaluated before they are fed: the right ones, some of them, other ones."""
    with session_of(model, kind, context=len(IDS)) as session:
        session.feed(IDS[:TAIL - 1]).run()
        for position in range(TAIL - 1, len(IDS)):
            draft = IDS[position + 1:position + 9].copy()
            draft[3 if position % 2 else 0:4] ^= 1
            session.feed([int(IDS[position])])
            session.draft(draft)
            session.run()
            assert_bits(session.logits.numpy(), truth[position])


@on_some_kinds
@pytest.mark.parametrize("length", [1, 100, 255, 256])
def test_rewind(model, kind, truth, length, assert_bits):
    """Another future was evaluated, and must leave nothing behind."""
    with session_of(model, kind, context=len(IDS) + 40) as session:
        session.feed(IDS[:length]).feed(IDS[::-1][: len(IDS) + 40 - length]).run()
        session.rewind(length)
        session.feed(IDS[length:]).run()
        assert_bits(session.logits.numpy(), truth[-1])


@pytest.mark.parametrize("cache", ["F32", "F32 int8 cache"])
@pytest.mark.parametrize("threads", [3, 5, 16])
def test_pages_as_units(threads, cache, truths, assert_bits):
    """A token behind 16 pages, alone and in a batch: with many threads they share each head's (3:
    in two rounds)."""
    path, _ = truths("F32")
    long = np.tile(IDS, 15)  # 4050
    logits = []
    for count in (1, threads):  # one thread has heads enough
        with mm.load(path, threads=count) as model:
            sessions = [session_of(model, cache, context=len(long)) for _ in range(2)]
            for session, length in zip(sessions, (len(long), 600), strict=True):
                session.feed(long[: length - 1]).run()
            with model.batch(sessions) as batch:
                for session in sessions:
                    session.feed(long[-1:])
                batch.run()
            sessions[0].rewind(len(long) - 1)
            sessions[0].feed(long[-1:]).run()
            logits.append(np.stack([session.logits.numpy() for session in sessions]))
    assert_bits(logits[1], logits[0])


@on_some_kinds
def test_rewind_half_way(model, kind, truth, assert_bits):
    """A chunk is in flight when the timeline is cut: below what is evaluated, and above it."""
    with session_of(model, kind, context=len(IDS), chunk=64) as session:
        session.feed(IDS)
        assert not session.run(0.00001)
        session.rewind(200)
        assert not session.run(0.00001)
        session.rewind(10)
        session.feed(IDS[10:]).run()
        assert_bits(session.logits.numpy(), truth[-1])


@on_some_kinds
def test_sliced_by_a_budget(model, kind, truth, assert_bits):
    slices = 1
    with session_of(model, kind, context=len(IDS), chunk=64) as session:
        session.feed(IDS)
        while not session.run(0.00001):
            slices += 1
        assert_bits(session.logits.numpy(), truth[-1])
    assert slices > 2


@on_some_kinds
def test_every_activation_watched(model, kind, truth, assert_bits):
    with session_of(model, kind, context=len(IDS), chunk=100) as session:
        stops = sum(1 for _ in session.trace(IDS))
        assert_bits(session.logits.numpy(), truth[-1])
    assert stops > 3 * 2 * 14


@on_some_kinds
def test_batch(model, kind, truth, assert_bits):
    sessions = [session_of(model, kind, context=len(IDS), chunk=chunk) for chunk in (64, 256, 7)]
    with model.batch(sessions) as batch:
        for session, length in zip(sessions, LENGTHS, strict=True):
            session.feed(IDS[: length - 4])
        batch.run()
        for step in range(-4, 0):  # decoding together
            for session, length in zip(sessions, LENGTHS, strict=True):
                session.feed([int(IDS[length + step])])
            batch.run()
            for session, length in zip(sessions, LENGTHS, strict=True):
                assert_bits(session.logits.numpy(), truth[length + step])
    for session in sessions:
        session.close()


@on_some_kinds
@pytest.mark.parametrize("length", [1, 100, 255, 256])
def test_fork(model, kind, truth, length, assert_bits):
    """Two branches of a fork: one takes another way, the other goes on; then a fork of that."""
    with session_of(model, kind, context=len(IDS) + 40) as session:
        session.feed(IDS[:length]).run()
        with session.fork() as other:
            other.feed(IDS[::-1][:40]).run()
            session.feed(IDS[length:-3]).run()
            with session.fork() as third:
                other.rewind(length)
                for branch in (third, other):
                    branch.feed(IDS[branch.length:]).run()
                    assert_bits(branch.logits.numpy(), truth[-1])


@on_some_kinds
def test_fork_in_the_middle_of_a_prompt(model, kind, truth, assert_bits):
    with session_of(model, kind, context=len(IDS), chunk=64) as session:
        session.feed(IDS[:30]).run()
        session.feed(IDS[30:])
        forks = []
        while not session.run(0.00001):
            if len(forks) < 3:
                forks.append(session.fork())
        for branch in (*forks, session):
            branch.run()
            assert_bits(branch.logits.numpy(), truth[-1])
            branch.close()


@on_some_kinds
@pytest.mark.parametrize("length", [1, 100, 255, 256])
def test_restored(model, kind, truth, length, tmp_path, assert_bits):
    """Saved and restored, mapped and read; then forked; then saved in the middle of a prompt."""
    path = tmp_path / "session"
    with session_of(model, kind, context=len(IDS) + 40, chunk=64) as session:
        session.feed(IDS[:length]).run()
        session.save(path)
    for mapped in (True, False):
        with model.restore(path, chunk=64, mapped=mapped) as session, session.fork() as other:
            assert_bits(session.logits.numpy(), truth[length - 1])
            other.feed(IDS[::-1][:40]).run()
            session.feed(IDS[length:])
            session.run(0.00001)
            session.save(tmp_path / "half")
            other.rewind(length)
            other.feed(IDS[length:])
            with model.restore(tmp_path / "half") as half:
                for branch in (session, other, half):
                    branch.run()
                    assert_bits(branch.logits.numpy(), truth[-1])


@on_some_kinds
def test_restored_from_another_level(model, kind, truths, truth, tmp_path, assert_bits):
    path = tmp_path / "session"
    with load(kind, truths(kind)[0], isa="ref", threads=2) as reference:
        with session_of(reference, kind, context=len(IDS)) as session:
            session.feed(IDS[:40]).run()
            session.save(path)
    with model.restore(path) as session:
        for position in range(40, 44):
            session.feed([int(IDS[position])]).run()
            assert_bits(session.logits.numpy(), truth[position])
        session.feed(IDS[44:]).run()
        assert_bits(session.logits.numpy(), truth[-1])


@pytest.fixture(scope="module")
def known(truths, tmp_path_factory):
    """Kind -> a folder of prefixes: the reference level has left the first page of LONG there."""
    @functools.cache
    def get(kind):
        folder = tmp_path_factory.mktemp("known")
        with load(kind, truths(kind)[0], isa="ref", threads=2, prefix_cache=1 << 30,
                  prefix_folder=folder) as model, session_of(model, kind, context=256) as session:
            session.feed(LONG[:256]).run()
        return folder

    return get


@on_some_kinds
@pytest.mark.parametrize("isa, threads", [(isa, 1 + i % 3) for i, isa in enumerate(FAST)])
@pytest.mark.parametrize("where", ["memory", "folder"])
def test_a_known_prefix(kind, truths, known, isa, threads, where, assert_bits):
    """Taken from memory, or from what another level has left in a folder; then forked, cut back
    into the page that is shared, and evaluated on another way."""
    path, truth = truths(kind)
    folder = known(kind) if where == "folder" else None
    with load(kind, path, isa=isa, threads=threads, prefix_cache=1 << 30,
              prefix_folder=folder) as model:
        if where == "memory":
            model.session(kv_dtype=kv_dtype(kind), chunk=100).feed(LONG[:300]).run()
        with session_of(model, kind, context=len(LONG), chunk=64) as second:
            second.feed(LONG[:400]).run()
            assert second.reused == 256
            assert_bits(second.logits.numpy(), truth[399])
            with second.fork() as third, session_of(model, kind, context=len(LONG)) as fourth:
                third.rewind(200)
                third.feed(LONG[::-1][:100]).run()
                third.rewind(200)
                for session in (second, third):
                    session.feed(LONG[session.length:]).run()
                    assert_bits(session.logits.numpy(), truth[-1])
                fourth.feed(LONG).run()
                assert fourth.reused == 256
                assert_bits(fourth.logits.numpy(), truth[-1])


@on_some_kinds
@pytest.mark.parametrize("rows", [16, 100])
def test_batch_with_a_cut_in_the_middle(model, kind, truth, rows, assert_bits):
    """A member decodes while others' prompts flow; one of these is cut while it is in flight."""
    start = 200
    sessions = [session_of(model, kind, context=len(IDS)) for _ in range(3)]
    sessions[0].feed(IDS[:start]).run()
    with model.batch(sessions, rows=rows) as batch:
        for session in sessions[1:]:
            session.feed(IDS)
        sessions[0].feed(IDS[start:start + 1])
        assert not batch.run(0.00001)
        sessions[1].rewind(50)
        for position in range(start, start + 5):
            while sessions[0].pos <= position:
                batch.run(0.00001)
            assert_bits(sessions[0].logits.numpy(), truth[position])
            sessions[0].feed(IDS[position + 1:position + 2])
        sessions[1].feed(IDS[50:])
        batch.run()
        for session in sessions[1:]:
            assert_bits(session.logits.numpy(), truth[-1])
    for session in sessions:
        session.close()
