"""tests/bench/compare.py: names, figures, tables. To compare takes llama-cpp-python, no test."""

import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"
sys.path.insert(0, str(BENCH))
import compare  # noqa: E402


def cpuinfo(cores, facts):
    """/proc/cpuinfo of that many cores."""
    return "\n\n".join(
        "\n".join([f"processor\t: {i}", f"core id\t\t: {i}", "flags\t\t: fpu avx2",
                   *(f"{name}\t: {value}" for name, value in facts.items())])
        for i in range(cores)) + "\n"


@pytest.mark.parametrize("text, name", [
    (cpuinfo(2, {"vendor_id": "AuthenticAMD", "cpu family": 26, "model": 2,
                 "model name": "AMD EPYC"}), "amd-epyc-zen5-2-cores"),
    (cpuinfo(1, {"vendor_id": "GenuineIntel", "cpu family": 6, "model": 143,
                 "model name": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"}),
     "intel-xeon-platinum-8481c-sapphirerapids-1-core"),
    (cpuinfo(4, {}), "aarch64-4-cores"),
])
def test_machine_name(text, name):
    assert compare.machine_name(text, "aarch64") == name


def test_threads_of_a_core_count_once():
    text = cpuinfo(2, {"model name": "Some Processor"}).replace("core id\t\t: 1", "core id\t\t: 0")
    assert compare.machine_name(text, "x86_64") == "some-1-core"


def test_what():
    assert compare.parse_what("pp512") == ("pp512", 0, 512, 512, False)
    assert compare.parse_what("pp512all@64") == ("pp512all@64", 64, 512, 512, True)
    assert compare.parse_what("tg") == ("tg32", 0, 32, 1, False)
    assert compare.parse_what("tg16@4096") == ("tg16@4096", 4096, 16, 1, False)
    for text in ("pp", "pp0", "tg16@", "tg16all", "512"):
        with pytest.raises(ValueError, match="is no pp512"):
            compare.parse_what(text)


def test_speed_is_the_median_and_the_spread_half_the_quartiles_distance():
    speed = compare.Speed.of(100, [1, 2, 4, 1, 100])  # 100, 50, 25, 100, 1 tokens/s
    assert speed == (50, 37.5)
    assert str(speed) == "50.0 ± 37.5"
    assert str(compare.Speed.of(512, [2])) == "256 ± 0"


def test_table_is_begun_once_and_grows(tmp_path):
    path = tmp_path / "new" / "some-machine.md"
    for ratio in "1.25", "0.75":
        compare.append_rows(path, "# Title\n\n", ("what", "ratio"), [("pp512", ratio)])
    assert path.read_text(encoding="utf-8") == (
        "# Title\n\n| what | ratio |\n|---|---|\n| pp512 | 1.25 |\n| pp512 | 0.75 |\n")


def test_engines_that_die_or_refuse_are_reported(tmp_path):
    with pytest.raises(compare.EngineError, match="minimax2: FileError"):
        compare.Engine("minimax2", sys.executable, open=str(tmp_path / "absent"), threads=1)
    with pytest.raises(compare.EngineError, match="no-engine died"):
        compare.Engine("no-engine", sys.executable, open="", threads=1)


def test_minimax2_runs_the_same_tokens_however_they_are_cut(tiny):
    engine = compare.Engine("minimax2", sys.executable, open=str(tiny.path), threads=1)
    try:
        whole = engine.ask(depth=0, tokens=24, step=24, context=24, every=False)
        cut = engine.ask(depth=8, tokens=16, step=1, context=24, every=False)
        again = engine.ask(depth=8, tokens=16, step=16, context=24, every=False)
    finally:
        engine.close()
    assert whole["logits"] == cut["logits"] == again["logits"]
    assert whole["seconds"] > 0 and whole["peak"] > 1e6


def test_formats_are_those_of_gguf(capsys):
    assert compare.parse_arguments(["--format", "q4_k_m,iq4_xs"]).format == ["q4_k_m", "iq4_xs"]
    for name in "w4a16", "q4_2":
        with pytest.raises(SystemExit):
            compare.parse_arguments(["--format", name])
        assert f"--format {name}: llama.cpp opens GGUF, in one of f32, f16" in (
            capsys.readouterr().err)


def test_without_llama_cpp_there_is_a_sentence(tmp_path, capsys):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    assert compare.main(["--format", "q8_0", "--llama-python", str(python)]) == 1
    assert capsys.readouterr().err.startswith(f"{python} has no llama-cpp-python: pip install -r")


class Fragile:
    """Engines of which the repacking one dies."""

    def __init__(self, works=True):
        self.works = works

    def run(self, key, what, most=None, ubatch=0, kv=None):
        if key[1] or not self.works:
            raise compare.EngineError("llama.cpp died, exit code -4")
        return {"seconds": 1 + (ubatch == 512)}


def test_settings_that_kill_llama_cpp_do_not_count(capsys):
    what = compare.parse_what("pp1024")
    assert compare.best_setting(Fragile(), what, "q8_0") == (
        ("llama.cpp", False), {"ubatch": 2048, "kv": "q8_0"})
    assert "repack, ubatch 512: llama.cpp died, exit code -4" in capsys.readouterr().err
    with pytest.raises(compare.EngineError, match="none of its settings"):
        compare.best_setting(Fragile(works=False), what, "f16")
