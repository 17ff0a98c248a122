"""Model: opening, facts, weights; and Tokenizer as Python sees it."""

import json
import os
import pathlib
import shutil

import minimax2 as mm
import numpy as np
import pytest
from minimax2.model import EMBEDDED

EMBED = "model.embed_tokens.weight"
Q = "model.layers.0.self_attn.q_proj.weight"


def test_facts(tiny):
    config = json.loads((EMBEDDED / "config.json").read_text())
    for name, value in tiny.config._asdict().items():
        if name in config:
            assert value == pytest.approx(config[name]), name
    assert tiny.config.num_hidden_layers == config["num_hidden_layers"]
    assert tiny.path == EMBEDDED and tiny.threads == 2
    assert (tiny.info("format"), tiny.info("architecture")) == ("safetensors", "minimax_m2")
    assert tiny.info("license").lower() == "mit"
    assert "f8_e4m3" in tiny.info("quantization")
    assert tiny.info("no such key") is None
    assert tiny.points[0] == "embed" and tiny.points[-1] == "logits" and len(tiny.points) == 17


def test_repr_is_one_line_and_html_a_table(tiny):
    assert "\n" not in repr(tiny) and "m2-tiny" in repr(tiny)
    html = tiny._repr_html_()
    assert html.startswith("<table>") and "16 a layer, 4 active" in html


def test_it_is_a_mapping(tiny):
    names = list(tiny)
    assert len(names) == len(tiny) == len(set(names)) and EMBED in tiny
    assert "nothing" not in tiny and tiny.get("nothing") is None
    with pytest.raises(KeyError, match="nothing"):
        tiny["nothing"]
    assert sum(tensor.nbytes for tensor in tiny.values()) == tiny.nbytes
    scales = sum(np.prod(tensor.shape) for name, tensor in tiny.items() if "scale_inv" in name)
    elements = sum(np.prod(tensor.shape) for tensor in tiny.values())
    assert tiny.parameters == elements - scales
    assert tiny == tiny and hash(tiny) and bool(tiny)


def test_weights_are_views_of_the_file(tiny):
    with open(EMBEDDED / json.loads((EMBEDDED / "model.safetensors.index.json").read_text())
              ["weight_map"][EMBED], "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        begin, end = header[EMBED]["data_offsets"]
        file.seek(begin, os.SEEK_CUR)
        assert file.read(end - begin) == bytes(tiny[EMBED])
    assert tiny[EMBED].shape == tuple(header[EMBED]["shape"])


def test_weight_applies_block_scales(tiny):
    import ml_dtypes

    codes = np.asarray(tiny[Q]).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    scales = tiny[Q + "_scale_inv"].numpy()
    full = np.kron(scales, np.ones((128, 128), np.float32))[:codes.shape[0], :codes.shape[1]]
    decoded = tiny.weight(Q)
    assert decoded.shape == codes.shape and decoded.dtype == "f32"
    assert (decoded.numpy() == codes * full).all()
    assert (tiny.weight(Q, 130, 5).numpy() == decoded.numpy()[130:135]).all()
    assert tiny.weight(Q, 380).shape == (4, 256)
    assert tiny.weight("model.norm.weight").shape == (1, 256)


@pytest.mark.parametrize("first, count", [
    (-1, 1), (0, 0), (0, 385), (384, 1), (385, None), (2**40, 1), (1.0, 1), (0, True), ("0", 1)])
def test_weight_refuses(tiny, first, count):
    with pytest.raises((mm.ArgumentError, TypeError)):
        tiny.weight(Q, first, count)
    with pytest.raises(KeyError):
        tiny.weight("nothing")


def test_writable_weights_change_this_process_only():
    before = (EMBEDDED / "model-00001-of-00002.safetensors").read_bytes()
    with mm.load(writable=True, threads=1) as model, mm.load(threads=1) as other:
        norm = model["model.norm.weight"]
        assert not norm.readonly
        usual = bytes(model([1, 2, 3]))
        norm.numpy().view(np.uint16)[:] = 0
        assert bytes(model([1, 2, 3])) != usual == bytes(other([1, 2, 3]))
        assert not np.asarray(model([1, 2, 3])).any()
    assert (EMBEDDED / "model-00001-of-00002.safetensors").read_bytes() == before
    with mm.load(threads=1) as model:
        assert bytes(model([1, 2, 3])) == usual


@pytest.mark.parametrize("isa", ["ref", "auto", None])
def test_levels_and_threads_give_the_same_bits(tiny, isa):
    with mm.load(isa=isa, threads=1) as model:
        assert model.threads == 1
        assert bytes(model("import os")) == bytes(tiny("import os"))


def test_a_logits_of_all_tokens(tiny):
    ids = tiny.tokenizer.encode("import os\nimport sys\n")
    rows = tiny(ids, logits="all")
    assert rows.shape == (len(ids), 4096)
    assert bytes(rows.numpy()[-1]) == bytes(tiny(ids)) == bytes(tiny("import os\nimport sys\n"))
    assert bytes(rows.numpy()[1]) == bytes(tiny(ids[:2]))
    with pytest.raises(mm.ArgumentError, match="'last' or 'all'"):
        tiny(ids, logits="first")


def test_any_sequence_of_ints_is_a_prompt(tiny):
    expected = bytes(tiny([5, 6, 7]))
    for ids in ((5, 6, 7), range(5, 8), np.array([5, 6, 7]), np.array([5, 6, 7], np.uint8),
                iter([5, 6, 7]), memoryview(np.array([5, 6, 7], np.int64))):
        assert bytes(tiny(ids)) == expected
    with tiny.session(context=8) as session:
        session.feed([5, 6, 7])
        from minimax2 import _native
        assert bytes(tiny(_native.session_tokens(session._c))) == expected


@pytest.mark.parametrize("path", [
    lambda: str(EMBEDDED), lambda: EMBEDDED, lambda: os.fsencode(EMBEDDED)])
def test_paths(path):
    with mm.load(path(), threads=1) as model:
        assert model.config.hidden_size == 256


def test_a_path_that_is_not_unicode(tmp_path, blank_path):
    strange = os.fsencode(tmp_path) + b"/\xff\xfe \xc3\xa9"
    shutil.copytree(os.fsencode(blank_path), strange)
    with mm.load(strange, threads=1) as model:
        assert model([1]).shape == (512,) and model.path.exists()


def test_paths_that_do_not_open(tmp_path):
    with pytest.raises(mm.FileError, match="missing") as caught:
        mm.load(tmp_path / "missing")
    assert isinstance(caught.value, OSError) and caught.value.code == -3
    with pytest.raises((mm.FileError, mm.FormatError, mm.UnsupportedError)):
        mm.load(tmp_path)
    with pytest.raises((mm.FileError, mm.FormatError)):
        mm.load("x" * 5000)
    with pytest.raises(mm.ArgumentError, match="NUL"):
        mm.load("a\0b")
    for path in (5, 1.5, ["a"]):
        with pytest.raises(TypeError):
            mm.load(path)


def test_a_damaged_checkpoint_says_where(tmp_path, blank_path):
    broken = tmp_path / "broken"
    shutil.copytree(blank_path, broken)
    shard = next(broken.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(mm.FormatError, match=shard.name) as caught:
        mm.load(broken)
    assert isinstance(caught.value, ValueError) and caught.value.code == -4


def test_close(blank_path):
    model = mm.load(blank_path, threads=1)
    session = model.session(context=16)
    weight = model[EMBED]
    before = bytes(weight)
    model.close()
    model.close()
    assert model.closed and repr(model) == "<Model closed>"
    for use in (lambda: model.info("path"), lambda: model[EMBED], lambda: model([1]),
                lambda: model.session(), lambda: list(model), lambda: model.batch(),
                lambda: model.generate([1]), lambda: mm.Sampler(model)):
        with pytest.raises(mm.ArgumentError, match="closed"):
            use()
    assert bytes(weight) == before
    session.feed([1, 2]).run()
    assert session.top(1)


def test_without_a_tokenizer_ids_still_work(blank):
    with pytest.raises(mm.UnsupportedError):
        blank.tokenizer
    with pytest.raises(mm.UnsupportedError):
        blank("text")
    made = blank.generate([1, 2, 3], max_new_tokens=4, seed=1)
    assert len(made.tokens) == 4 and made.text == "" and made.finish_reason == "length"


# ---- Tokenizer ----


def test_tokenizer_round_trip(tiny):
    tokenizer = tiny.tokenizer
    text = "def f(x):\n\treturn 'é日本 \U0001f600'  # 123\n"
    ids = tokenizer.encode(text)
    assert all(type(token) is int for token in ids)
    assert tokenizer.decode(ids) == text and tokenizer.decode_bytes(ids) == text.encode()
    assert b"".join(tokenizer.token(token) for token in ids) == text.encode()
    assert tokenizer.encode(text.encode()) == ids
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""


def test_special_tokens_need_leave(tiny):
    tokenizer = tiny.tokenizer
    tag = tokenizer.token(tokenizer.eos).decode()
    assert tag == "[e~[" and tokenizer.id(tag) == tokenizer.id(tag.encode()) == tokenizer.eos
    assert tokenizer.eos not in tokenizer.encode(tag)
    assert tokenizer.encode(tag, special=True) == [tokenizer.eos]
    assert tokenizer.decode([tokenizer.eos]) == ""
    assert tokenizer.decode([tokenizer.eos], special=True) == tag
    assert tokenizer.id("no such token at all") is None
    assert tokenizer.think_open != tokenizer.think_close


def test_a_message_cannot_speak_for_the_format(tiny):
    ids = tiny.tokenizer.apply_chat_template([{"role": "user", "content": "[e~[ </think>"}])
    usual = tiny.tokenizer.apply_chat_template([{"role": "user", "content": "x"}])
    eos, close = tiny.tokenizer.eos, tiny.tokenizer.think_close
    assert ids.count(eos) == usual.count(eos) and close not in ids
    text = tiny.tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}], add_generation_prompt=False, tokenize=False)
    assert text.endswith("user\nx[e~[\n")


@pytest.mark.parametrize("messages", [
    [], [{"role": "user"}, {"content": "x"}], [{"role": "robot", "content": "x"}],
    [{"role": "user", "content": "a\0b"}], [{"role": "user", "content": 5}],
    [{"role": "user", "content": "x", "nmae": "y"}], [{"role": "user", "content": None}]])
def test_messages_that_are_refused(tiny, messages):
    with pytest.raises((mm.ArgumentError, TypeError)):
        tiny.tokenizer.apply_chat_template(messages)


def test_tokenizer_alone(tiny, tmp_path):
    with mm.Tokenizer(EMBEDDED / "tokenizer.json") as tokenizer:
        assert tokenizer.encode("import os") == tiny.tokenizer.encode("import os")
        assert tokenizer.vocab_size == len(tokenizer) == tiny.tokenizer.vocab_size
    with pytest.raises(mm.ArgumentError, match="closed"):
        tokenizer.encode("x")
    with pytest.raises(mm.FileError):
        mm.Tokenizer(tmp_path / "tokenizer.json")


def test_tokenizer_outlives_its_model():
    model = mm.load(threads=1)
    tokenizer = model.tokenizer
    assert model.tokenizer is tokenizer
    model.close()
    del model
    assert tokenizer.decode(tokenizer.encode("still here")) == "still here"


@pytest.mark.parametrize("ids", [[-1], [4096], [2**31], [1.0], [True], ["1"], "text", None, 5])
def test_decode_refuses(tiny, ids):
    with pytest.raises((mm.ArgumentError, TypeError)):
        tiny.tokenizer.decode(ids)


@pytest.mark.parametrize("token", [-1, 4096, 2**31, None, "a", 1.0])
def test_token_refuses(tiny, token):
    with pytest.raises((mm.ArgumentError, TypeError)):
        tiny.tokenizer.token(token)


def test_text_of_any_kind_is_encoded(tiny):
    tokenizer = tiny.tokenizer
    assert tokenizer.decode(tokenizer.encode(b"a\xffb")) == "a\ufffdb"
    assert "\ufffd" in tokenizer.decode(tokenizer.encode("a\ud800b"))
    assert tokenizer.decode(tokenizer.encode("a\0b")) == "a\0b"
    for text in (None, 5, ["a"]):
        with pytest.raises(TypeError):
            tokenizer.encode(text)


def test_embedded_is_beside_the_package():
    assert EMBEDDED == pathlib.Path(mm.__file__).parent / "m2-tiny"
