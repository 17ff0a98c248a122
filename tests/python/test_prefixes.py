"""The cache of prefixes, as Python sees it. What it does is tested from C (c/test_prefix.c)."""

import os
import time

import minimax2 as mm
import pytest

IDS = [(i * i * 7 + 13 * i) % 4000 for i in range(700)]
ROOM = 1 << 30


@pytest.fixture(scope="module")
def model():
    with mm.load(threads=2, prefix_cache=ROOM) as opened:
        yield opened


def written(model):
    """Its stats, when nothing is left to be written."""
    while (stats := model.prefix_stats).unwritten:
        time.sleep(0.001)
    return stats


def test_a_session_starts_behind_what_is_known(model, tiny):
    expected = bytes(tiny(IDS))
    before = model.prefix_stats
    for reused in (0, 512):
        with model.session() as session:
            session.feed(IDS)
            assert session.reused == session.pos == 0
            session.run()
            assert (session.reused, session.pos) == (reused, len(IDS))
            assert bytes(session.logits) == expected
            assert session.progress == (700 * 5, 700 * 5)
            session.rewind(100)
            assert session.reused == min(reused, 100)
    stats = model.prefix_stats
    assert isinstance(stats, mm.PrefixStats)
    assert stats.reused - before.reused == 512 and stats.added - before.added == 2
    assert stats.bytes > 0 and stats.limit == ROOM and stats.problem is None


def test_without_one_there_is_none(tiny):
    assert set(tiny.prefix_stats) == {0, None}
    with tiny.session() as session:
        session.feed(IDS).run()
        assert session.reused == 0


def test_generations_and_chats_share(model, tiny):
    text = "def add(a, b):\n    return a + b\n\n" * 40
    options = dict(seed=3, max_new_tokens=12)
    expected = tiny.generate(text, **options)
    before = model.prefix_stats.reused
    for _ in range(2):
        assert model.generate(text, **options).tokens == expected.tokens
    both = model.generate([text, text + "#"], **options)
    assert both[0].tokens == expected.tokens
    pages = (len(tiny.ids(text)) - 1) // 256
    assert pages > 0
    assert model.prefix_stats.reused - before >= 2 * 256 * pages


def test_who_looks_inside_sees_every_row_and_edits_stay_at_home(model, tiny):
    ids = [5 * i % 4000 for i in range(600)]
    expected = bytes(tiny(ids))
    model(ids)
    _, cache = model.run_with_cache(ids, "resid_post")
    assert cache["resid_post", 4].shape[0] == len(ids)
    rows = model(ids, logits="all")
    assert rows.shape[0] == len(ids) and bytes(rows.numpy()[-1]) == expected

    def double(tensor, tap):
        tensor.numpy()[:] *= 2

    other = ids[::-1]
    edited = model.run_with_hooks(other, [(("mlp_out", 1), double)])
    assert bytes(edited) != bytes(model(other)) == bytes(tiny(other))


def test_a_folder(tmp_path, tiny):
    expected = bytes(tiny(IDS))
    for given in (tmp_path, str(tmp_path), os.fsencode(tmp_path)):
        with mm.load(threads=2, prefix_cache=ROOM, prefix_folder=given) as model:
            with model.session() as session:
                session.feed(IDS).run()
                assert session.reused == (0 if given is tmp_path else 512)
                assert bytes(session.logits) == expected
            stats = written(model)
            assert (stats.written, stats.read) == ((2, 0) if given is tmp_path else (0, 2))
    assert len([*tmp_path.iterdir()]) == 2
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    with mm.load(threads=2, prefix_cache=ROOM, prefix_folder=tmp_path) as model:
        assert bytes(model(IDS)) == expected
        assert written(model).damaged == 1  # the second is not looked at behind the first


def test_one_member_of_a_batch_waits_alone(tmp_path, tiny):
    with mm.load(threads=2, prefix_cache=ROOM, prefix_folder=tmp_path) as model:
        model(IDS)
    with mm.load(threads=2, prefix_cache=ROOM, prefix_folder=tmp_path) as model:
        sessions = [model.session().feed(IDS), model.session().feed([1, 2, 3])]
        with model.batch(sessions) as batch:
            assert batch.next() is sessions[1]
            assert batch.next() is sessions[0]
        assert sessions[0].reused == 512
        assert bytes(sessions[0].logits) == bytes(tiny(IDS))
        for session in sessions:
            session.close()


def test_refusals(tmp_path):
    def refused(error, says, **options):
        with pytest.raises(error, match=says):
            mm.load(threads=1, **options)

    for name in ("prefix_cache", "prefix_disk"):
        refused(TypeError, name, **{name: "1 GB"})
        refused(TypeError, name, **{name: True})
        refused(mm.ArgumentError, f"{name} is 0", **{name: 0})
        refused(mm.ArgumentError, f"{name} is -1", **{name: -1})
    refused(TypeError, "path", prefix_cache=ROOM, prefix_folder=5)
    refused(mm.ArgumentError, "needs prefix_cache", prefix_folder=tmp_path)
    refused(mm.ArgumentError, "needs prefix_folder", prefix_cache=ROOM, prefix_disk=ROOM)
    refused(mm.ArgumentError, "written to", prefix_cache=ROOM, writable=True)
    refused(FileNotFoundError, "No such file", prefix_cache=ROOM, prefix_folder=tmp_path / "x")
    with mm.load(threads=1, prefix_cache=ROOM) as model:
        session = model.session()
    with pytest.raises(mm.ArgumentError, match="closed"):
        model.prefix_stats
    session.close()
    with pytest.raises(mm.ArgumentError, match="closed"):
        session.reused
