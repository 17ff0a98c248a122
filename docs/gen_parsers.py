"""The page parsers.md: what this parser and four published ones read in the same outputs.

    python docs/gen_parsers.py            write it
    python docs/gen_parsers.py --check    exit 1 if it is not what would be written

The others were measured once, by running them; their readings stand in parser_matrix.json and
thinking_matrix.json of the vendor's folder (MINIMAX2_VENDOR_DATA). Ours are made here, with the
tokens of m2-tiny, ended by the end of the turn.
"""

import json
import os
import sys
from pathlib import Path

import minimax2 as mm
from minimax2 import _native_text

PAGE = Path(__file__).resolve().parent / "parsers.md"
ROOT = PAGE.parent.parent
FOLDER = Path(os.environ.get("MINIMAX2_VENDOR_DATA",
                             ROOT.parent / "shared/data/minimax-m2")) / "templates"
HEAD = """# What is a call, by five parsers

Made by `docs/gen_parsers.py`. The outputs and the measurements are our own; the rules are in
[CHAT.md](../CHAT.md). Guide: the code of the vendor's guide for tool calls. mlx-lm: its parser
`minimax_m2`. vLLM 0.32.0 and SGLang 0.5.23: their parsers, on the whole text, and behind "stream:"
one character at a time, where that differs. A dash is nothing; what stands in quotes is text;
"(cut)" is a call that the reply ended inside of, "(unknown)" one of a tool that was not declared.
`T` is `<minimax:tool_call>`, `I(f)` is `<invoke name="f">`, `P(a)` is `<parameter name="a">`, with
a slash their ends.
"""
SHORT = {"<minimax:tool_call>": "T", "</minimax:tool_call>": "/T", "</invoke>": "/I",
         "</parameter>": "/P", '<invoke name="f">': "I(f)", '<invoke name="g">': "I(g)",
         '<parameter name="a">': "P(a)", '<parameter name="b">': "P(b)"}


def code(text):
    """A text as it stands in a cell."""
    for tag, short in SHORT.items():
        text = text.replace(tag, short)
    text = text.replace("\n", "\\n").replace("\t", "\\t").replace("|", "\\|")
    return f"`` {text} ``" if "`" in text or text != text.strip() else f"`{text}`" if text else "–"


def one_call(call):
    """A call that another parser has read."""
    name, arguments = call[:2]
    given = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return code(f"{name} {given}")


def cell(result, thinks=False):
    """What another parser has read."""
    if isinstance(result, str):
        return f"raises {result.removeprefix('EXC ').partition(':')[0]}"
    calls, content = (result, None) if isinstance(result, list) else (
        result.get("calls", []), result["content"])
    parts = [one_call(call) for call in calls] + ([code(f'"{content}"')] if content else [])
    if thinks:
        parts.insert(0, "thinks " + code(f'"{result["reasoning"] or ""}"'))
    return ", ".join(parts) or "–"


def both(results, name, thinks=False):
    """The whole text, and the stream where it differs."""
    found = [(kind, cell(results[f"{name} {kind}"], thinks)) for kind in ("batch", "stream")]
    if found[0][1] == found[1][1]:
        return found[0][1]
    return f"{found[0][1]}; stream: {found[1][1]}"


def ours(tokenizer, text, tools, start, thinks=False):
    """What this library reads."""
    reply = _native_text.reply_new(tokenizer._c, start, 2**31 - 1, [tokenizer.eos], [],
                                   _native_text.json_text(tools, "tools"))
    for token in [*tokenizer.encode(text, special=True), tokenizer.eos]:
        if _native_text.reply_push(reply, token).end:
            break
    piece = _native_text.reply_all(reply)
    calls = [_native_text.reply_call(reply, i) for i in range(piece.calls)]
    parts = [code(f"{call.name} {call.arguments}") + " (cut)" * (call.state == 2)
             + " (unknown)" * (not call.known) for call in calls]
    parts += [code(f'"{piece.text}"')] if piece.text else []
    if thinks:
        parts.insert(0, "thinks " + code(f'"{piece.thinking}"'))
    return ", ".join(parts) or "–"


def table(head, rows):
    """Lines of a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines) + "\n"


def page():
    """The text of the page."""
    tokenizer = mm.load().tokenizer
    calls = json.loads((FOLDER / "parser_matrix.json").read_text())["cases"]
    thoughts = json.loads((FOLDER / "thinking_matrix.json").read_text())["cases"]
    rows = []
    for case in calls:
        tools, results = [{"name": "f", "parameters": {
            "type": "object", "properties": case["properties"]}}], case["results"]
        rows.append([case["case"].replace("|", "\\|").replace("<", "\\<").replace("\n", "\\n"),
                     code(case["text"]), ours(tokenizer, case["text"], tools,
                                              _native_text.START_ANSWER),
                     cell(results["vendor guide"]), cell(results["mlx-lm"]),
                     both(results, "vLLM 0.32"), both(results, "SGLang 0.5.23")])
    made = HEAD + "\n## Behind the thinking\n\n" + table(
        ["case", "output", "minimax2", "guide", "mlx-lm", "vLLM", "SGLang"], rows)
    tools = [{"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}}]
    rows = []
    for case in thoughts:
        text = case["output_after_prompt"]
        rows.append([code(text), ours(tokenizer, text, tools, _native_text.START_THINKING, True),
                     both(case["results"], "vLLM 0.32", True),
                     both(case["results"], "SGLang 0.5.23 minimax (reasoning step)", True)])
    return made + ("\n## Around `<think>`\n\nThe prompt ends in `<think>\\n`. SGLang: the step "
                   "that takes the thinking out; its tool\nparser reads what it leaves.\n\n"
                   ) + table(["output", "minimax2", "vLLM", "SGLang"], rows)


def main():
    """Write or check."""
    made = page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(made)
    elif made != PAGE.read_text():
        sys.exit(f"{PAGE} is not what would be written: run {Path(__file__).name}")


if __name__ == "__main__":
    main()
