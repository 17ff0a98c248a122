"""Edits as data: each is what a hook would write; in batches, forks, generations and files."""

import json
import struct

import minimax2 as mm
import numpy as np
import pytest

PROMPT = [7 * i % 4000 for i in range(40)]
RNG = np.random.default_rng(5)
VECTOR = RNG.normal(size=256).astype(np.float32)
HEAD = RNG.normal(size=64).astype(np.float32)


def hooked(model, point, change, layers=None, positions=slice(None)):
    """The logits where a hook does it by hand."""
    def hook(tensor, tap):
        if layers is None or tap.layer in layers:
            view = tensor.numpy()
            view[positions] = change(view[positions])

    return model.run_with_hooks(PROMPT, [(point, hook)]).numpy().copy()


def edited(model, edits):
    with model.session(64, edits=edits) as session:
        session.feed(PROMPT).run()
        return session.logits.numpy().copy()


def ablated(z):
    z[:, [1, 5]] = 0
    return z


def one_head(z):
    z[:, 3] = z[:, 3] * HEAD
    return z


@pytest.mark.parametrize("edits, point, change, where", [
    (mm.Edits().add("resid_post", VECTOR, layers=2, factor=4), "resid_post",
     lambda x: x + np.float32(4) * VECTOR, {"layers": [2]}),
    (mm.Edits().add("resid_mid", VECTOR, layers=[-1, 0, 1], positions=slice(10, 20)), "resid_mid",
     lambda x: x + VECTOR, {"layers": [0, 1, 4], "positions": slice(10, 20)}),
    (mm.Edits().set("mlp_out", 0, layers=range(1, 4)), "mlp_out", lambda x: x * 0,
     {"layers": [1, 2, 3]}),
    (mm.Edits().set("attn_out", VECTOR.tolist(), positions=5), "attn_out",
     lambda x: np.broadcast_to(VECTOR, x.shape), {"positions": slice(5, 6)}),
    (mm.Edits().scale("attn_norm", 1.5), "attn_norm", lambda x: x * np.float32(1.5), {}),
    (mm.Edits().scale("z", HEAD, heads=3), "z", one_head, {}),
    (mm.Edits().clamp("resid_pre", -1, 0.5), "resid_pre", lambda x: np.clip(x, -1, 0.5), {}),
    (mm.Edits().ablate_heads([1, -1], layers=2), "z", ablated, {"layers": [2]}),
    (mm.Edits().add("embed", VECTOR).scale("logits", 0.5), "logits", None, {}),
])
def test_each_is_what_a_hook_would_write(tiny, edits, point, change, where):
    made = edited(tiny, edits)
    if change is None:
        def add(tensor, tap):
            tensor.numpy()[...] += VECTOR

        expected = tiny.run_with_hooks(PROMPT, [("embed", add)]).numpy() * np.float32(0.5)
    else:
        expected = hooked(tiny, point, change, **where)
    assert np.array_equal(made, expected)
    assert not np.array_equal(made, edited(tiny, None))


def test_caps_and_projections(tiny):
    basis = RNG.normal(size=(3, 256)).astype(np.float32)
    q, _ = np.linalg.qr(basis.T.astype(np.float64))

    def project(x):
        return (x - (x @ q) @ q.T).astype(np.float32)

    for edits, point, change in (
            (mm.Edits().cap("resid_post", 2, layers=4), "resid_post", lambda x: 2 * np.tanh(x / 2)),
            (mm.Edits().project_out("resid_post", basis, layers=4), "resid_post", project),
            (mm.Edits().project_out("resid_post", VECTOR, factor=2, layers=4), "resid_post",
             lambda x: x - 2 * np.outer(x @ VECTOR, VECTOR) / (VECTOR @ VECTOR))):
        expected = hooked(tiny, point, change, layers=[4])  # later ones would choose other experts
        np.testing.assert_allclose(edited(tiny, edits), expected, atol=0.02)


def routing(model, edits):
    with model.session(64, edits=edits) as session:
        _, cache = session.run_with_cache(PROMPT, ["expert_indices", "expert_weights"])
        return [(cache["expert_indices", layer].numpy(), cache["expert_weights", layer].numpy())
                for layer in range(model.config.num_hidden_layers)]


def test_experts(tiny):
    plain = routing(tiny, None)
    assert any(3 in chosen for chosen, _ in plain)
    assert any(5 not in row for chosen, _ in plain for row in chosen)
    made = routing(tiny, mm.Edits().mask_experts([3, 4], layers=[1, 2]).force_experts(5, layers=2))
    assert np.array_equal(made[0][0], plain[0][0])
    assert not np.isin(made[1][0], [3, 4]).any() and not np.isin(made[2][0], [3, 4]).any()
    assert (made[2][0] == 5).any(axis=1).all()
    made = routing(tiny, mm.Edits().weigh_experts({0: 0, 2: 2.0}, layers=0))
    factors = np.ones(16, np.float32)
    factors[[0, 2]] = 0, 2
    assert np.array_equal(made[0][1], plain[0][1] * factors[plain[0][0]])
    made = routing(tiny, mm.Edits().keep_experts(2, layers=0))[0][1]
    assert ((made > 0).sum(axis=1) == 2).all()
    np.testing.assert_allclose(made.sum(axis=1), plain[0][1].sum(axis=1), rtol=1e-6)
    assert (np.argmax(made, axis=1) == np.argmax(plain[0][1], axis=1)).all()


def test_a_session_has_its_own_list(tiny):
    with tiny.session(64) as session:
        assert len(session.edits) == 0
        session.edits.add("resid_post", VECTOR, layers=1).scale("logits", 2.0)
        assert len(session.edits) == 2 and "resid_post at layers 1" in repr(session.edits)
        session.feed(PROMPT).run()
        expected = edited(tiny, mm.Edits().add("resid_post", VECTOR, layers=1).scale("logits", 2.0))
        assert np.array_equal(session.logits.numpy(), expected)
        del session.edits[1]
        session.rewind(0)
        session.feed(PROMPT).run()
        assert np.array_equal(session.logits.numpy() * 2, expected)
        fork = session.fork()
        session.edits.clear()
        for one, edits in ((session, None), (fork, mm.Edits().add("resid_post", VECTOR, layers=1))):
            one.rewind(0)
            one.feed(PROMPT).run()
            assert np.array_equal(one.logits.numpy(), edited(tiny, edits))
        given = mm.Edits().scale("v", 0.5)
        with fork.edited(given) as both:
            assert len(both) == 2
        assert len(fork.edits) == 1 and len(given) == 1
        fork.edits = given
        given.clear()
        assert len(fork.edits) == 1
        fork.close()


def test_they_ride_along(tiny):
    """In generate(), batches, engines, scores, logits and chats; only where they were asked for."""
    edits = mm.Edits().add("resid_post", 3 * VECTOR, layers=2)
    options = {"max_new_tokens": 8, "seed": 1}
    plain = tiny.generate("import os", **options)
    made = tiny.generate("import os", edits=edits, **options)
    assert made.tokens != plain.tokens
    with tiny.session(64, edits=edits) as session:
        assert session.generate("import os", **options).tokens == made.tokens
    together = tiny.generate([{"prompt": "import os", "edits": edits}, "import os"], **options)
    assert [one.tokens for one in together] == [made.tokens, plain.tokens]
    assert [one.tokens for one in tiny.generate("import os", n=2, edits=edits, **options)] == [
        made.tokens, tiny.generate("import os", edits=edits, max_new_tokens=8, seed=2).tokens]
    with tiny.engine() as engine:
        jobs = [engine.generate("import os", stream=True, edits=edits, **options),
                engine.generate("import os", stream=True, **options)]
        assert [job.result().tokens for job in jobs] == [made.tokens, plain.tokens]
    assert tiny.score("import os", edits=edits).logprobs != tiny.score("import os").logprobs
    assert np.array_equal(tiny(PROMPT, edits=edits).numpy(), edited(tiny, edits))
    chat = tiny.chat(edits=edits, **options)
    assert len(chat.session.edits) == 1


def test_they_say_what_they_are():
    edits = mm.Edits().mask_experts(3, layers=1).weigh_experts({0: 0.5}).add(
        "z", HEAD, heads=2, positions=slice(4, None))
    assert repr(edits) == ("<Edits: <choose experts {3: -inf} at layers 1>, "
                           "<weigh experts {0: 0.5}>, <add z, heads 2, positions 4:>>")


@pytest.mark.parametrize("wrong", ["a", 5, [5], {"add": 1}])
def test_what_is_no_list_of_edits(tiny, wrong):
    with pytest.raises(TypeError, match="edits must be"):
        tiny.generate("x", edits=wrong)
    with tiny.session() as session:
        with pytest.raises(TypeError, match="edits must be"):
            session.edits = wrong


def test_taps_see_what_edits_leave(tiny):
    with tiny.session(64, edits=mm.Edits().set("resid_post", 7, layers=2)) as session:
        _, cache = session.run_with_cache(PROMPT, "resid_post")
    assert (cache["resid_post", 2].numpy() == 7).all()
    assert (cache["resid_post", 1].numpy() != 7).any()


def test_files(tiny, tmp_path):
    path = tmp_path / "edits.safetensors"
    edits = mm.Edits()
    edits.add("resid_post", VECTOR, layers=[1, 2], factor=0.5, positions=slice(3, None))
    edits.project_out("v", RNG.normal(size=(2, 64)), heads=1).mask_experts(3).cap("logits", 20)
    edits.save(path)
    loaded = mm.Edits.load(path)
    assert [e._replace(values=None) for e in loaded] == [e._replace(values=None) for e in edits]
    assert loaded == edits and loaded != edits[1:]
    assert np.array_equal(edited(tiny, loaded), edited(tiny, edits))
    from safetensors.numpy import load_file
    assert np.array_equal(load_file(path)["0"], VECTOR)
    whole = path.read_bytes()
    for wrong in (b"", whole[:4], whole[:100], whole[:-4], b"\xff" * 8 + whole[8:],
                  whole.replace(b"minimax2-edits-1", b"minimax2-edits-9"),
                  whole.replace(b'\\"kind\\": \\"add\\"', b'\\"kind\\": \\"odd\\"'),
                  whole.replace(b'\\"first\\": 3', b'\\"first\\": x')):
        path.write_bytes(wrong)
        with pytest.raises(mm.FormatError, match="holds no edits"):
            mm.Edits.load(path)
    with pytest.raises(mm.FileError, match="edits.safetensors"):
        mm.Edits.load(tmp_path / "gone" / "edits.safetensors")
    with pytest.raises(mm.FileError, match="gone"):
        edits.save(tmp_path / "gone" / "x")
    header = json.dumps({"__metadata__": {"format": "minimax2-edits-1",
                                          "edits": "[" * 100000}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(mm.FormatError):
        mm.Edits.load(path)


@pytest.mark.parametrize("make, error, sentence", [
    (lambda e: e.add("resid", VECTOR), mm.ArgumentError, "no point is called 'resid'"),
    (lambda e: e.add("resid_post", VECTOR[:5]), mm.ArgumentError, "takes 256 values, there are 5"),
    (lambda e: e.add("resid_post", [np.nan] * 256), mm.ArgumentError, "value 0 is not finite"),
    (lambda e: e.add("resid_post", []), mm.ArgumentError, "values are empty"),
    (lambda e: e.add("resid_post", VECTOR, layers=9), mm.ArgumentError, "a layer"),
    (lambda e: e.add("resid_post", VECTOR, layers="1"), TypeError, "layers must be an int"),
    (lambda e: e.add("resid_post", VECTOR, heads=1), mm.ArgumentError, "resid_post has no heads"),
    (lambda e: e.scale("z", 0, heads=6), mm.ArgumentError, "a head"),
    (lambda e: e.scale("z", 0, positions=-1), mm.ArgumentError, "positions"),
    (lambda e: e.scale("z", 0, positions=slice(0, 9, 2)), mm.ArgumentError, "no step"),
    (lambda e: e.scale("z", 0, positions=slice(5, 5)), mm.ArgumentError, "the end of positions"),
    (lambda e: e.scale("expert_indices", 0), mm.ArgumentError, "expert_indices"),
    (lambda e: e.clamp("z", 1, 0), mm.ArgumentError, "low must be at most high"),
    (lambda e: e.cap("z", 0), mm.ArgumentError, "above 0"),
    (lambda e: e.project_out("resid_post", [VECTOR, 2 * VECTOR]), mm.ArgumentError, "row 1"),
    (lambda e: e.mask_experts(range(16)), mm.ArgumentError, "16 of 16 experts are masked"),
    (lambda e: e.mask_experts(99), mm.ArgumentError, "16 experts"),
    (lambda e: e.keep_experts(5), mm.ArgumentError, "rows must be 1..4"),
    (lambda e: e.keep_experts(0), mm.ArgumentError, "count is 0"),
    (lambda e: e.extend(mm.Edits().mask_experts(range(8)).mask_experts(range(8, 13), layers=1)),
     mm.ArgumentError, "13 of 16 experts are masked at layer 1"),
    (lambda e: e.extend([5]), TypeError, "edits must be"),
    (lambda e: e.add("resid_post", "abc"), TypeError, "values must be numbers"),
    (lambda e: e.bias_experts({1: 1e300}), mm.ArgumentError, "too large for float32"),
    (lambda e: e.scale("v", 0, layers=1.5), TypeError, "layers must be an int or several"),
    (lambda e: e.scale("v", 0, positions=[1, 2]), TypeError, "positions"),
])
def test_what_cannot_be_changes_nothing(tiny, make, error, sentence):
    with tiny.session(64, edits=mm.Edits().scale("v", 0.5)) as session:
        with pytest.raises(error, match=sentence):
            make(session.edits)
        assert len(session.edits) == 1
        session.feed(PROMPT).run()
        assert np.array_equal(session.logits.numpy(), edited(tiny, mm.Edits().scale("v", 0.5)))
