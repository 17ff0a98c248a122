"""The command: output, exit codes and sentences, as a shell sees them."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
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


def test_generate_without_echo(tiny):
    expected = tiny.generate("import os", max_new_tokens=12, seed=3)
    assert good("generate", "import os", "-n", 12, "--seed", 3, "--no-echo") == f"{expected}\n"


def test_chat(tiny):
    code, output, errors = run("chat", "--seed", 3, "-n", 60,
                               text="What is 3 + 4?\nAnd 5?\n\nnever read\n")
    assert code == 0
    with tiny.chat(seed=3, max_new_tokens=60) as chat:
        made = [chat.send(question) for question in ("What is 3 + 4?", "And 5?")]
    assert any(answer.text for answer in made) and all(answer.thinking for answer in made)
    assert output == "".join(f"{answer.text}\n" for answer in made if answer.text)
    for answer in made:  # in a pipe it is apart from the answer
        assert answer.thinking in errors and answer.thinking not in output
        errors = errors[errors.index(answer.thinking):]
    assert good("chat", "-n", 1, text="\n") == ""


def test_chat_of_one_message(tiny):
    expected = tiny.generate([{"role": "user", "content": "What is 3 + 4?"}], seed=3)
    for given, text in (("What is 3 + 4?", "never read"), ("-", "What is 3 + 4?")):
        code, output, errors = run("chat", given, "--seed", 3, "-n", 1024, text=text)
        assert (code, output) == (0, f"{expected.text}\n") and expected.thinking in errors


def test_chat_without_thinking(tiny):
    expected = tiny.chat(seed=3, thinking=False).send("What is 3 + 4?")
    assert good("chat", "What is 3 + 4?", "--no-thinking", "--seed", 3, "-n", 1024) == (
        f"{expected.text}\n")


def test_keys_and_values_have_a_type(tiny):
    for kv_dtype in ("f32", "int8"):
        made = tiny.generate("def f(", temperature=0, max_new_tokens=9, kv_dtype=kv_dtype)
        assert good("generate", "def f(", "--temperature", 0, "-n", 9, "--kv-dtype", kv_dtype) == (
            f"def f({made.text}\n")
    with tiny.chat(kv_dtype="int8", seed=3, max_new_tokens=9) as chat:
        answer = chat.send("hi")
    code, _, errors = run("chat", "hi", "--seed", 3, "-n", 9, "--kv-dtype", "int8")
    assert code == 0 and errors.startswith(answer.thinking)
    for command in (("generate", "x"), ("chat", "x"), ("bench",)):
        code, output, errors = run(*command, "--kv-dtype", "q8")
        assert (code, output) == (1, "") and "kv_dtype is 'q8'" in errors


def test_an_answer_that_was_cut_says_so():
    code, _, errors = run("chat", "hi", "--seed", 3, "-n", 2)
    assert code == 0 and errors.endswith("[cut off after 2 tokens; -n N allows more]\n")
    code, _, errors = run("chat", "hi", "--seed", 3, "--context", 48)
    assert code == 0 and errors.endswith("[cut off: the context of 48 positions is full; --context "
                                         "N makes a larger one]\n")
    code, _, errors = run("chat", "--seed", 3, "--context", 48, text="hi\nand\n")
    assert code == 1 and errors.endswith("minimax2: error: the conversation is full: its context "
                                         "has 48 positions; --context N makes a larger one\n")


def terminal(arguments, typed, env=None):
    """What a command shows on a terminal when this is typed: pairs, a text and what to type when it
    has come, or SIGINT for Ctrl-C. Python hears of a signal that comes between a prompt and the
    wait behind it only with the next one, so silence is answered by another."""
    controller, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 80))
    program = subprocess.Popen([*COMMAND, *arguments], stdin=end, stdout=end, stderr=end,
                               env={**os.environ, "TERM": "xterm", **(env or {})})
    os.close(end)
    shown = b""
    seen = 0
    text = None
    while True:
        while text == signal.SIGINT and not select.select([controller], [], [], 2)[0]:
            program.send_signal(text)
        try:
            part = os.read(controller, 4096)
        except OSError:  # the other end is closed
            break
        shown += part
        if typed and typed[0][0] in shown[seen:]:
            seen = len(shown)
            text = typed.pop(0)[1]
            if text == signal.SIGINT:
                program.send_signal(text)
            else:
                os.write(controller, text)
    os.close(controller)
    assert program.wait(timeout=60) == 0
    return shown.decode().replace("\r\n", "\n")


def test_chat_on_a_terminal_has_a_history():
    up = b"\x1b[A"
    shown = terminal(["chat", "--seed", "3", "-n", "2"],
                     [(b"> ", b"first\n"), (b"> ", up + b"\n"), (b"> ", b"\n")])
    assert shown.count("> first") == 2
    assert shown.count("[cut off after 2 tokens; -n N allows more]") == 2
    assert "\033[2m" in shown and "\033[0m" in shown


def test_chat_has_commands(tiny, tmp_path):
    """What is taken back, edited, saved and loaded is the conversation; the rest is said."""
    place = tmp_path / "talk"
    tools = tmp_path / "tools.json"
    tools.write_text('[{"function": {"name": "f", "description": "does", "parameters": {}}}]')
    code, output, errors = run(
        "chat", "--seed", 3, "-n", 8, "--no-thinking", "--tools", tools, text="\n".join((
            "/nothing", "/undo", "/tools", "/system", "Hi", "Again", "/undo", "/edit Ho",
            f"/save {place}", "//x", f"/load {place}", "/undo", "/system Be kind.",
            "/load no/where", "/help", "/think", "and", "")))
    assert code == 0, errors
    with tiny.chat(seed=3, max_new_tokens=8, thinking=False, tools=tools.read_text()) as chat:
        said = [chat.send("Hi"), chat.send("Again")]
        chat.messages = []
        said.append(chat.send("Ho"))
        chat.session.save(tmp_path / "same")
        said.append(chat.send("/x"))
        chat.session = tiny.restore(tmp_path / "same")
        last = chat.send("and")
    lines = output.split("\n")
    assert lines[0] == "f: does" and output.endswith(f"{last.text}\n")
    assert output.startswith("f: does\n" + "".join(f"{answer.text}\n" for answer in said))
    assert output.count("/save PATH: ") == 1
    for note in ("there is no command /nothing", "error: there is nothing to take back",
                 "the model's own system prompt", "taken back: Again", "saved: ", "loaded: ",
                 "error: no/where: ", "thinking is hidden"):
        assert f"[{note}" in errors, errors
    assert "message 0 is a system message" in errors
    assert (tmp_path / "same").stat().st_size == place.stat().st_size


def test_a_refused_line_does_not_end_a_piped_chat():
    """It is told, and the next one is read."""
    options = ["chat", "--seed", 3, "-n", 8, "--no-thinking"]
    code, output, errors = run(*options, text="a\0b\nHi\n")
    assert code == 0 and errors.startswith("[error: ") and "NUL" in errors
    assert output == run(*options, "Hi")[1] != ""


def test_thinking_is_switched_on_and_off_by_name():
    _, _, errors = run("chat", text="/think off\n/think off\n/think on\n/think\n/think x\n")
    assert errors.splitlines() == [f"[thinking is {word}]" for word in (
        "hidden", "hidden", "shown", "hidden")] + ["[error: /think is on or off, not x]"]


def test_ctrl_c_before_anything_is_imported():
    """The command ends as it does later on."""
    code = """
import sys, minimax2_command
class Interrupt:
    def find_spec(self, *_):
        raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
sys.exit(minimax2_command.main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\n")
    wanted = [sys.executable, "-c", "import minimax2_command as c; import sys; sys.exit(c.main())",
              "--version"]
    assert subprocess.run(wanted, capture_output=True, text=True,
                          timeout=60).stdout == f"minimax2 {mm.__version__}\n"


def test_chat_shows_calls(tmp_path):
    """While they come; what the tool would answer is typed by nobody."""
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps([{"function": {
        "name": "calculate", "description": "Calculator", "parameters": {
            "type": "object", "properties": {"expression": {
                "type": "string", "description": "what to compute"}},
            "required": ["expression"]}}}]))
    code, output, errors = run("chat", "--temperature", 0, "--tools", tools,
                               "Calculate 655 - 193 with the tool.")
    assert (code, output) == (0, 'calculate({"expression": "655 - 193"})\n')
    assert errors == "I call calculate.\n"
    code, output, errors = run("chat", "--temperature", 0, "--tools", tools, "-n", 26,
                               "Calculate 655 - 193 with the tool.")
    assert code == 0 and output.startswith('calculate({"expression": "') and output.endswith(
        '"}) [cut off]\n')


def test_ctrl_c_stops_an_answer_and_keeps_the_chat(tiny):
    """On a terminal; the thinking can be hidden."""
    interrupt, again = signal.SIGINT, b"[cut short]\r\n> "
    shown = terminal(["chat", "--seed", "3", "-n", "3000", "--temperature", "9", "--top-k", "0",
                      "--top-p", "1"],  # words without an end
                     [(b"> ", b"Hi\n"), (b"\x1b[2m", interrupt), (again, b"/think\n"),
                      (b"hidden]\r\n> ", b"Hi\n"), (b"[it thinks]", interrupt), (again, b"\n")])
    assert shown.count("[cut short]") == 2 and "Traceback" not in shown
    assert shown.count("\033[2m") == shown.count("\033[0m") == 2


def test_a_chat_on_a_terminal_outlives_what_can_be_mended():
    shown = terminal(["chat", "--seed", "3", "--context", "48"],
                     [(b"> ", b"hi\n"), (b"larger one]\r\n> ", b"and\n"),
                      (b"the conversation is full", b"/undo\n"),
                      (b"taken back: hi]\r\n> ", signal.SIGINT),
                      (b"ends the chat]\r\n> ", b"\n")])
    assert shown.count("> ") >= 4 and "Traceback" not in shown


def test_synth_shows_progress_on_a_terminal(tmp_path):
    shown = terminal(["synth", str(tmp_path / "m.gguf"), "--like", "tiny", "--format", "f16"], [])
    assert "/7.50M" in shown and f"{tmp_path / 'm.gguf'}: 0.0" in shown
    assert good("synth", tmp_path / "n.gguf", "--like", "tiny", "--format", "f16")


@pytest.mark.parametrize("encoding, shown", [
    ("ascii", "?????? ?"), ("latin-1", "?????? ?"), ("utf-8", "Привет \U0001f999")])
def test_an_output_that_is_not_utf8(encoding, shown):
    done = subprocess.run([*COMMAND, "generate", "-n", "2", "--seed", "1", "Привет \U0001f999"],
                          env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "1"},
                          capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode(encoding).startswith(shown)


def test_an_input_that_is_not_utf8():
    done = subprocess.run([*COMMAND, "generate", "-n", "1", "--seed", "1", "-"],
                          input=b"caf\xe9 ", capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith("caf\ufffd ".encode())
    done = subprocess.run([*map(os.fsencode, COMMAND), b"generate", b"-n", b"1", b"caf\xe9"],
                          capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("redirection, sentence", [
    (">&-", "the standard output is closed"), (">/dev/full", "No space left on device"),
    (">&- 2>&-", ""), ("1</dev/null", "Bad file descriptor"), ("2>&- >/dev/full", "")])
@pytest.mark.parametrize("command", ["info", "generate -n 2 --seed 1 x", "chat -n 2 --seed 1 hi"])
def test_an_output_that_is_closed_or_full(command, redirection, sentence):
    done = subprocess.run(f"{' '.join(COMMAND)} {command} {redirection}", shell=True,
                          capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    if sentence:
        last = done.stderr.splitlines()[-1]
        assert last.startswith("minimax2: error: ") and sentence in last
        assert "Exception ignored" not in done.stderr


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
    (("info", "/does/not/exist"), "/does/not/exist"),
    (("convert", "/does/not/exist", "x"), "/does/not/exist"),
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
    (("bench", "--report", "x", "--kv-dtype", "int8"), "a report has its own fixed set"),
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
               ("info", "generate", "chat", "inspect", "bench", "convert", "synth"))


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
