"""The command: output, exit codes and sentences, as a shell sees them."""

import json
import os
import signal
import subprocess
import sys
import time

import minimax2 as mm
import pytest

COMMAND = [sys.executable, "-m", "minimax2"]


def run(*arguments, text=None):
    """(exit code, output, errors)."""
    done = subprocess.run([*COMMAND, *map(str, arguments)], input=text, capture_output=True,
                          text=True, timeout=120, stdin=None if text else subprocess.DEVNULL)
    return done.returncode, done.stdout, done.stderr


def good(*arguments, text=None):
    """The output of a command that succeeds and says nothing on the side."""
    code, output, errors = run(*arguments, text=text)
    assert (code, errors) == (0, "")
    return output


def test_info():
    output = good("info", "--threads", 1)
    assert output.startswith(f"minimax2 {mm.__version__}, {mm.cpu()}\n")
    assert "license  mit" in output.lower() and "16 a layer, 4 active" in output
    assert "1 threads" in output


def test_generate(tiny):
    expected = tiny.generate("import os", max_new_tokens=12, seed=3, top_k=5)
    options = ("-n", 12, "--seed", 3, "--top-k", 5)
    assert good("generate", "import os", *options) == f"import os{expected}\n"
    assert good("generate", "-", *options, text="import os") == f"import os{expected}\n"
    made = json.loads(good("generate", "import os", *options, "--json"))
    assert made["tokens"] == expected.tokens and made["text"] == expected.text
    assert (made["seed"], made["finish_reason"]) == (3, expected.finish_reason)
    greedy = tiny.generate("import os", max_new_tokens=12, temperature=0, stop=["s"])
    assert good("generate", "import os", "-n", 12, "--temperature", 0,
                "--stop", "s") == f"import os{greedy}\n"


def test_chat(tiny):
    output = good("chat", "--seed", 3, "-n", 20, text="What is 3 + 4?\nAnd 5?\n\nnever read\n")
    with tiny.chat(seed=3, max_new_tokens=20) as chat:
        for question in ("What is 3 + 4?", "And 5?"):
            made = chat.send(question)
            assert made.text in output and made.thinking in output
    assert good("chat", "-n", 1, text="\n") == ""


def test_inspect(tiny):
    lines = good("inspect").splitlines()
    assert len(lines) == len(tiny) + 1
    assert lines[-1] == f"{len(tiny)} tensors, 13.5 MB"
    lines = good("inspect", "*.norm.weight").splitlines()
    assert lines[0].split() == ["model.norm.weight", "bf16", "256", "512"]


def test_bench():
    result = json.loads(good("bench", "--prompt", 32, "--decode", 4, "--repeat", 3, "--json"))
    assert result["prefill_tokens_per_second"] > 0 and result["decode_tokens_per_second"] > 0
    assert (result["prompt_tokens"], result["decode_tokens"], result["repeat"]) == (32, 4, 3)
    output = good("bench", "--prompt", 8, "--decode", 2, "--repeat", 1)
    assert "prefill" in output and "decode" in output


def test_synth_makes_what_the_others_open(tmp_path):
    path = tmp_path / "random.gguf"
    good("synth", path, "--like", "tiny", "--layers", 1, "--format", "q8_0")
    assert "q8_0" in good("info", "-m", path)
    assert good("generate", "-m", path, "hello", "-n", 3, "--seed", 1).startswith("hello")
    code, _, errors = run("synth", path, "--like", "tiny")
    assert code == 1 and errors.startswith("minimax2: error: ")


@pytest.mark.parametrize("arguments, sentence", [
    (("info", "-m", "/does/not/exist"), "/does/not/exist"),
    (("generate", "x", "--threads", 0), "threads is 0"),
    (("generate", "x", "--isa", "sse"), "isa is 'sse'"),
    (("generate", "x", "--precision", "best"), "precision is 'best'"),
    (("generate", "x", "--temperature", -1), "temperature"),
    (("generate", "x", "-n", -1), "max_new_tokens"),
    (("generate", ""), "the prompt is empty"),
    (("inspect", "nothing*"), "nothing*"),
    (("chat", "--context", 0), "context is 0"),
    (("bench", "--prompt", 0), "--prompt is 0"),
    (("bench", "--decode", -1), "--decode is -1"),
    (("bench", "--repeat", 0), "--repeat is 0"),
])
def test_errors_are_one_sentence(arguments, sentence):
    code, _, errors = run(*arguments, text="hello\n")
    assert code == 1 and errors.startswith("minimax2: error: ") and errors.count("\n") == 1
    assert sentence in errors


@pytest.mark.parametrize("arguments", [(), ("fly",), ("generate",), ("bench", "--prompt", "many")])
def test_wrong_usage(arguments):
    code, output, errors = run(*arguments)
    assert (code, output) == (2, "") and "usage: minimax2" in errors


def test_version_and_help():
    assert good("--version") == f"minimax2 {mm.__version__}\n"
    assert all(command in good("--help") for command in
               ("info", "generate", "chat", "inspect", "bench", "synth"))


def test_ctrl_c():
    program = subprocess.Popen([*COMMAND, "bench", "--repeat", "1000"], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(2)
    program.send_signal(signal.SIGINT)
    output, errors = program.communicate(timeout=10)
    assert program.returncode == 130
    assert (output, errors.strip()) == ("", "")


def test_a_reader_that_leaves():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*COMMAND, "inspect"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")
