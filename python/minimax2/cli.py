"""The command minimax2: info, generate, chat, inspect, plan, bench, convert, synth."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import minimax2 as mm
from minimax2 import bench, chat_command, convert, plan, show, synth
from minimax2.chat_command import is_terminal, read_text

EPILOG = "Without -m these work on m2-tiny, the small model that comes with the package."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0, 1 after an error sentence, 130 after Ctrl-C."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what cannot be shown, or is not text, is replaced
            stream.reconfigure(errors="replace")
    arguments = _parser().parse_args(argv)
    if sys.stdout is None:
        return _fail("the standard output is closed")
    try:
        arguments.run(arguments)
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        if sys.stderr is not None:
            print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # such as `| head`
        _drop_output()
        return 1
    except (mm.Error, OSError) as error:
        if not isinstance(error, mm.Error):
            _drop_output()  # it may be the output that fails, as on a full disk
        return _fail(error)


def _fail(sentence: object) -> int:
    if sys.stderr is not None:
        print(f"minimax2: error: {sentence}", file=sys.stderr)
    return 1


def _drop_output() -> None:
    """Nothing more can be written: what is still in the buffer goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="minimax2", description="Run MiniMax-M2 language models on CPUs.", epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"minimax2 {mm.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(run: Callable[[argparse.Namespace], None], text: str,
                name: str | None = None) -> argparse.ArgumentParser:
        name = name or run.__name__.strip("_")
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        return made

    def opens_model(made: argparse.ArgumentParser) -> None:
        made.add_argument("-m", "--model", metavar="PATH", help="directory or .gguf file")
        made.add_argument("-t", "--threads", type=int, metavar="N", help="default: physical cores")
        made.add_argument("--isa", help="ref, avx2, avx512, amx or blas; default: the best")
        made.add_argument("--precision", default="fast",
                          help="fast (default), or exact: float32 products in every format")

    def samples(made: argparse.ArgumentParser) -> None:
        made.add_argument("-n", "--max-new-tokens", type=int, default=256, metavar="N",
                          help="thinking included (256)")
        made.add_argument("--temperature", type=float, metavar="T", help="0: greedy")
        made.add_argument("--top-k", type=int, metavar="K")
        made.add_argument("--top-p", type=float, metavar="P")
        made.add_argument("--min-p", type=float, metavar="P")
        made.add_argument("--seed", type=int, metavar="N", help="default: a fresh one")
        made.add_argument("--speculate", type=int, metavar="N", help="evaluate at most N likely "
                          "tokens ahead, 0..15 (0): the same text, sooner where it repeats itself")

    made = command(_info, "say what a model is made of, whether this build runs it or not")
    made.add_argument("path", nargs="?", help="the same as --model")
    opens_model(made)
    made.add_argument("--json", action="store_true", help="print one JSON object; its keys are "
                                                          "those of minimax2.Info")

    made = command(_generate, "go on from a prompt")
    opens_model(made)
    samples(made)
    made.add_argument("prompt", help="the text to go on from; -: read it from standard input")
    made.add_argument("--no-echo", action="store_true", help="do not print the prompt first")
    bench.add_kv_dtype(made)
    made.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this")
    made.add_argument("--json", action="store_true", help="print one JSON object at the end")

    made = command(_chat, "talk; an empty line or Ctrl-D ends it, Ctrl-C cuts an answer short, "
                          "/help lists commands. Where the answer is not shown on a terminal, the "
                          "thinking goes to standard error")
    opens_model(made)
    samples(made)
    made.add_argument("message", nargs="?", help="answer this alone, and end; -: read it from "
                                                 "standard input")
    thinks = made.add_mutually_exclusive_group()
    thinks.add_argument("--no-thinking", action="store_true", help="ask for the answer at once")
    thinks.add_argument("--thinking", type=int, metavar="N", help="think N tokens at most")
    made.add_argument("--tools", metavar="FILE", help="JSON of tools that the model may call; its "
                                                      "calls are shown, not made")
    made.add_argument("--system", metavar="TEXT", help="the system prompt")
    bench.add_kv_dtype(made)
    made.add_argument("--context", type=int, metavar="N", help="positions; default: at most 8192")

    made = command(_inspect, "list tensors: name, dtype, shape, bytes")
    opens_model(made)
    made.add_argument("pattern", nargs="?", default="*", help="such as '*layers.0.*'")

    made = command(_plan, "say what sessions would take, of memory and time, before anything is "
                          "allocated")
    made.add_argument("path", nargs="?", help="the same as --model")
    opens_model(made)
    plan.add_arguments(made)
    bench.add_kv_dtype(made)

    made = command(bench.run, "measure speed beside what this machine gives", "bench")
    opens_model(made)
    bench.add_arguments(made)

    convert.add_arguments(command(
        convert.run, "write a checkpoint of GPTQ, AutoRound or AWQ in a layout that opens, without "
        "loss", "convert"))
    synth.add_arguments(command(synth.run, "write random weights, to measure with", "synth"))
    return parser


def _load(arguments: argparse.Namespace) -> mm.Model:
    return mm.load(arguments.model, threads=arguments.threads, isa=arguments.isa,
                   precision=arguments.precision)


def _sampling(arguments: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(arguments, name) for name in
             ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "seed",
              "speculate")}
    return {name: value for name, value in given.items() if value is not None}


def _path(arguments: argparse.Namespace) -> str | None:
    if arguments.path is not None and arguments.model is not None:
        raise mm.ArgumentError(f"{arguments.path!r} and -m {arguments.model!r} are two models: "
                               "give one")
    path: str | None = arguments.model if arguments.path is None else arguments.path
    return path


def _plan(arguments: argparse.Namespace) -> None:
    arguments.model = _path(arguments)
    with _load(arguments) as model:
        plan.run(model, arguments)


def _info(arguments: argparse.Namespace) -> None:
    found = mm.info(_path(arguments), threads=arguments.threads,
                    isa=arguments.isa, precision=arguments.precision)
    if arguments.json:
        print(json.dumps(found))
        return
    print(f"minimax2 {mm.__version__}, {mm.cpu()}\n{found}")


def _generate(arguments: argparse.Namespace) -> None:
    prompt = read_text(arguments.prompt)
    with _load(arguments) as model:
        stream = model.generate(prompt, stream=True, stop=arguments.stop,
                                kv_dtype=arguments.kv_dtype, **_sampling(arguments))
        if arguments.json:
            result = stream.result()
            print(json.dumps({
                "prompt": prompt, "text": result.text, "tokens": result.tokens,
                "finish_reason": result.finish_reason, "seed": result.seed,
                "prompt_tokens_per_second": round(result.timing.prompt_speed, 1),
                "tokens_per_second": round(result.timing.speed, 1)}))
            return
        if not arguments.no_echo:
            print(prompt, end="", flush=True)
        for piece in stream:
            print(piece, end="", flush=True)
        print()
        if is_terminal(sys.stderr):
            print(_summary(stream.result()), file=sys.stderr)


def _summary(result: mm.Generation) -> str:
    timing = result.timing
    ahead = (f"{timing.accepted} of {timing.proposed} proposed tokens came; "
             if timing.proposed else "")
    return (f"[{len(result.tokens)} tokens, {result.finish_reason}; prompt "
            f"{timing.prompt_speed:.0f} tokens/s, then {timing.speed:.1f} tokens/s; {ahead}"
            f"seed {result.seed}]")


def _chat(arguments: argparse.Namespace) -> None:
    given = None if arguments.message is None else read_text(arguments.message)
    options = _sampling(arguments)
    if arguments.no_thinking:
        options["thinking"] = False
    elif arguments.thinking is not None:
        options["thinking"] = arguments.thinking
    if arguments.tools is not None:
        options["tools"] = Path(arguments.tools).read_text(encoding="utf-8")
    with _load(arguments) as model, model.chat(
            arguments.system, context=arguments.context, kv_dtype=arguments.kv_dtype,
            **options) as chat:
        chat_command.run(chat, given)


def _inspect(arguments: argparse.Namespace) -> None:
    with _load(arguments) as model:
        rows = [(name, tensor.dtype, " x ".join(map(str, tensor.shape)), tensor.nbytes)
                for name, tensor in model.items() if fnmatch(name, arguments.pattern)]
        if not rows:
            raise mm.ArgumentError(f"no tensor's name matches {arguments.pattern!r}")
        widths = [max(len(str(row[i])) for row in rows) for i in range(3)]
        for name, dtype, shape, nbytes in rows:
            print(f"{name:<{widths[0]}}  {dtype:<{widths[1]}}  {shape:>{widths[2]}}  {nbytes:>14,}")
        print(f"{len(rows)} tensors, {show.size(sum(row[3] for row in rows))}")
