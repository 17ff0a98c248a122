"""Taps, hooks and caches: what is seen is what is computed with, and edits count."""

import gc

import minimax2 as mm
import numpy as np
import pytest

IDS = [11 * i % 4000 for i in range(1, 21)]
LAYERS = 5


def test_taps_come_in_the_order_of_the_data_flow(tiny):
    seen = [(tap.layer, tap.point) for tap in tiny.trace(IDS)]
    inner = [point for point in tiny.points if point not in ("embed", "final_norm", "logits")]
    expected = ([(0, "embed")] + [(layer, point) for layer in range(LAYERS) for point in inner]
                + [(LAYERS - 1, "final_norm"), (LAYERS - 1, "logits")])
    assert seen == expected


def test_shapes_and_dtypes(tiny):
    c, rows = tiny.config, len(IDS)
    expected = {
        "q": (rows, c.num_attention_heads, c.head_dim),
        "k": (rows, c.num_key_value_heads, c.head_dim),
        "v": (rows, c.num_key_value_heads, c.head_dim),
        "z": (rows, c.num_attention_heads, c.head_dim),
        "router_logits": (rows, c.num_local_experts),
        "expert_indices": (rows, c.num_experts_per_tok),
        "expert_weights": (rows, c.num_experts_per_tok),
        "logits": (rows, c.vocab_size),
    }
    for tap in tiny.trace(IDS):
        assert tap.tensor.shape == expected.get(tap.point, (rows, c.hidden_size)), tap.point
        assert tap.tensor.dtype == ("i32" if tap.point == "expert_indices" else "f32")
        assert tap.positions == range(rows) and not tap.tensor.readonly


def test_looking_does_not_change_the_bits(tiny):
    logits, cache = tiny.run_with_cache(IDS)
    assert bytes(logits) == bytes(tiny(IDS)) == bytes(cache["logits"].numpy()[-1])


def test_the_stream_adds_up(tiny):
    _, cache = tiny.run_with_cache(IDS)
    for layer in range(LAYERS):
        def at(point):
            return cache[point, layer].numpy()
        assert (at("resid_pre") + at("attn_out") == at("resid_mid")).all()
        assert np.allclose(at("resid_mid") + at("mlp_out"), at("resid_post"), atol=1e-5)
        if layer:
            assert bytes(cache["resid_pre", layer]) == bytes(cache["resid_post", layer - 1])
        indices = at("expert_indices")
        assert (np.diff(indices, axis=1) > 0).all() and indices.max() < 16


@pytest.mark.parametrize("points, layers, expected", [
    ("resid_post", 2, [("resid_post", 2)]),
    ("resid_post", -1, [("resid_post", 4)]),
    (["k", "q"], [0, 3], [("q", 0), ("k", 0), ("q", 3), ("k", 3)]),
    (("mlp_out",), range(2), [("mlp_out", 0), ("mlp_out", 1)]),
    ("final_norm", 1, [("final_norm", 4)]),
    ([], None, []),
])
def test_selection(tiny, points, layers, expected):
    assert [tap[:2] for tap in tiny.trace(IDS, points, layers)] == expected


@pytest.mark.parametrize("points, layers", [
    ("nothing", None), (["q", "Q"], None), ("q", 5), ("q", -6), ("q", [0, 5]), ("q", 1.0),
    ("q", True), (5, None), (None, "q")])
def test_selection_refuses(tiny, points, layers):
    with pytest.raises((mm.ArgumentError, TypeError)):
        tiny.trace(IDS, points, layers)


def test_writing_into_a_tap_steers(tiny):
    for tap in tiny.trace(IDS, ["resid_post", "logits"]):
        if tap.point == "resid_post" and tap.layer == 4:
            tap.tensor[:] = 0
        elif tap.point == "logits":
            assert not tap.tensor.numpy().any()


def test_expert_indices_can_be_forced(tiny):
    wanted = [1, 2, 3, 4]
    cache = {}
    for tap in tiny.trace(IDS, ["expert_indices", "mlp_out"], 0):
        cache[tap.point] = tap.tensor.copy()
        if tap.point == "expert_indices":
            tap.tensor[:] = wanted
    _, plain = tiny.run_with_cache(IDS, "mlp_out", 0)
    assert bytes(cache["mlp_out"]) != bytes(plain["mlp_out"])
    for impossible in ([4, 3, 2, 1], [1, 1, 2, 3], [0, 1, 2, 16], [-1, 0, 1, 2]):
        with pytest.raises(mm.ArgumentError):
            for tap in tiny.trace(IDS, "expert_indices", 0):
                tap.tensor[:] = impossible


def test_hooks(tiny):
    seen = []

    def look(tensor, tap):
        seen.append((tap.point, tap.layer))

    def silence(tensor, tap):
        tensor.numpy()[:] = 0

    logits = tiny.run_with_hooks(IDS, [("q", look), (("mlp_out", 3), look), ("embed", look),
                                       (("mlp_out", 3), look)])
    assert seen == ([("embed", 0)] + [("q", layer) for layer in range(4)]
                    + [("mlp_out", 3)] * 2 + [("q", 4)])
    assert bytes(logits) == bytes(tiny(IDS))
    assert not tiny.run_with_hooks(IDS, [("final_norm", silence)]).numpy().any()
    with pytest.raises(TypeError, match="in place"):
        tiny.run_with_hooks(IDS, [("q", lambda tensor, tap: tensor)])
    with pytest.raises(ZeroDivisionError):
        tiny.run_with_hooks(IDS, [("q", lambda tensor, tap: 1 / 0)])


def test_cache(tiny):
    logits, cache = tiny.run_with_cache(IDS, ["resid_post", "final_norm"], positions=[-1, 3])
    assert cache.positions == [19, 3] and len(cache) == LAYERS + 1
    assert cache["resid_post", 2].shape == (2, 256)
    _, full = tiny.run_with_cache(IDS, ["resid_post", "final_norm"])
    assert (cache["resid_post", 2].numpy() == full["resid_post", 2].numpy()[[19, 3]]).all()
    stacked = full.stack("resid_post")
    assert stacked.shape == (LAYERS, 20, 256)
    assert (stacked.numpy()[4] == full["resid_post", 4].numpy()).all()
    assert full["final_norm"].shape == (20, 256)
    assert set(cache) == {("resid_post", layer) for layer in range(LAYERS)} | {("final_norm", 4)}
    for missing in ("resid_post", ("q", 0), "nothing"):
        with pytest.raises(KeyError):
            full[missing]
    with pytest.raises(KeyError):
        full.stack("q")
    _, some = tiny.run_with_cache(IDS, "embed", positions=slice(2, 5))
    _, full = tiny.run_with_cache(IDS, "embed")
    assert (some["embed"].numpy() == full["embed"].numpy()[2:5]).all()


def test_a_cache_spans_chunks(tiny):
    ids = [i % 4000 for i in range(600)]
    _, cache = tiny.run_with_cache(ids, ["embed", "resid_post"], layers=[1])
    assert cache["embed"].shape == (600, 256)
    with tiny.session(context=600, chunk=7) as session:
        rows = [tap.tensor.copy().numpy() for tap in session.trace(ids, "resid_post", 1)]
    assert len(rows) == 86
    assert (np.concatenate(rows) == cache["resid_post", 1].numpy()).all()


def test_leaving_a_trace_early(session, tiny):
    for tap in session.trace(IDS, "resid_post"):
        if tap.layer == 1:
            break
    gc.collect()
    assert session.run() is True
    assert bytes(session.logits) == bytes(tiny(IDS))


def test_a_trace_that_is_under_way_excludes_the_rest(session):
    taps = session.trace(IDS, "resid_post")
    next(taps)
    for use in (session.run, lambda: session.feed([1]), lambda: session.rewind(0),
                lambda: session.trace([1]), lambda: session.generate()):
        with pytest.raises(mm.BusyError, match="trace"):
            use()
    taps.close()
    assert session.run() is True


def test_a_tap_outlives_its_session(tiny):
    taps = tiny.trace(IDS, "resid_post", 0)
    kept = next(taps).tensor
    before = bytes(kept)
    del taps
    gc.collect()
    reused = [b"\xab" * (n << 10) for n in range(8, 64) for _ in range(20)]  # if it were free
    assert bytes(kept) == before and len(reused) == 1120


def test_going_on_after_the_session_was_closed(tiny):
    session = tiny.session(context=32)
    taps = session.trace(IDS, "resid_post")
    next(taps)
    session.close()
    with pytest.raises(mm.ArgumentError, match="closed"):
        next(taps)
