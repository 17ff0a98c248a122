"""The command minimax2: info, generate, chat, inspect, bench, synth."""

import argparse
import json
import os
import sys
from fnmatch import fnmatch

import minimax2 as mm
from minimax2 import bench, show, synth
from minimax2.generation import Timing

EPILOG = "Without -m these work on m2-tiny, the small model that comes with the package."


def main(argv=None):
    """Run one command; the exit code: 0, 1 after an error sentence, 130 after Ctrl-C."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (mm.Error, OSError) as error:
        print(f"minimax2: error: {error}", file=sys.stderr)
        return 1


def _parser():
    parser = argparse.ArgumentParser(
        prog="minimax2", description="Run MiniMax-M2 language models on CPUs.", epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"minimax2 {mm.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(run, text, name=None):
        name = name or run.__name__.strip("_")
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        return made

    def opens_model(made):
        made.add_argument("-m", "--model", metavar="PATH", help="directory or .gguf file")
        made.add_argument("-t", "--threads", type=int, metavar="N", help="default: physical cores")
        made.add_argument("--isa", help="ref, avx2, avx512, amx or blas; default: the best")
        made.add_argument("--precision", default="fast",
                          help="fast (default), or exact: float32 products in every format")

    def samples(made):
        made.add_argument("-n", "--max-new-tokens", type=int, default=256, metavar="N")
        made.add_argument("--temperature", type=float, metavar="T", help="0: greedy")
        made.add_argument("--top-k", type=int, metavar="K")
        made.add_argument("--top-p", type=float, metavar="P")
        made.add_argument("--min-p", type=float, metavar="P")
        made.add_argument("--seed", type=int, metavar="N", help="default: a fresh one")

    made = command(_info, "say what a model is")
    opens_model(made)

    made = command(_generate, "go on from a prompt")
    opens_model(made)
    samples(made)
    made.add_argument("prompt", help="the text to go on from; -: read it from standard input")
    made.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this")
    made.add_argument("--json", action="store_true", help="print one JSON object at the end")

    made = command(_chat, "talk; an empty line or Ctrl-D ends it, Ctrl-C cuts an answer short")
    opens_model(made)
    samples(made)
    made.add_argument("--system", metavar="TEXT", help="the system prompt")
    made.add_argument("--context", type=int, metavar="N", help="positions; default: at most 8192")

    made = command(_inspect, "list tensors: name, dtype, shape, bytes")
    opens_model(made)
    made.add_argument("pattern", nargs="?", default="*", help="such as '*layers.0.*'")

    made = command(bench.run, "measure speed beside what this machine gives", "bench")
    opens_model(made)
    bench.add_arguments(made)

    synth.add_arguments(command(synth.run, "write random weights, to measure with", "synth"))
    return parser


def _load(arguments):
    return mm.load(arguments.model, threads=arguments.threads, isa=arguments.isa,
                   precision=arguments.precision)


def _sampling(arguments):
    given = {name: getattr(arguments, name) for name in
             ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "seed")}
    return {name: value for name, value in given.items() if value is not None}


def _info(arguments):
    print(f"minimax2 {mm.__version__}, {mm.cpu()}")
    with _load(arguments) as model:
        for name, value in show.facts(model):
            if value is not None:
                print(f"{name:>14}  {value}")


def _generate(arguments):
    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    with _load(arguments) as model:
        stream = model.generate(prompt, stream=True, stop=arguments.stop, **_sampling(arguments))
        if arguments.json:
            result = stream.result()
            print(json.dumps({
                "prompt": prompt, "text": result.text, "tokens": result.tokens,
                "finish_reason": result.finish_reason, "seed": result.seed,
                "prompt_tokens_per_second": round(result.timing.prompt_speed, 1),
                "tokens_per_second": round(result.timing.speed, 1)}))
            return
        print(prompt, end="", flush=True)
        for piece in stream:
            print(piece, end="", flush=True)
        print()
        if sys.stderr.isatty():
            print(_summary(stream.result()), file=sys.stderr)


def _summary(result):
    timing: Timing = result.timing
    return (f"[{len(result.tokens)} tokens, {result.finish_reason}; prompt "
            f"{timing.prompt_speed:.0f} tokens/s, then {timing.speed:.1f} tokens/s; "
            f"seed {result.seed}]")


def _chat(arguments):
    dim, plain = ("\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "")
    prompt = "> " if sys.stdin.isatty() else ""
    with _load(arguments) as model, model.chat(
            arguments.system, context=arguments.context, **_sampling(arguments)) as chat:
        while True:
            try:
                text = input(prompt)
            except EOFError:
                return
            if not text:
                return
            stream = chat.send(text, stream=True)
            try:
                _say(stream, dim, plain)
            except KeyboardInterrupt:
                stream.cancel()
                print(f"{plain} [cut short]")


def _say(stream, dim, plain):
    thought = 0
    print(end=dim)
    while not stream.done:
        piece = stream.poll(0.05)
        if len(stream.thinking) > thought:
            print(stream.thinking[thought:], end="", flush=True)
            thought = len(stream.thinking)
        if piece and piece == stream.text:
            print(plain + ("\n\n" if thought else ""), end="")
        print(piece, end="", flush=True)
    print(plain)


def _inspect(arguments):
    with _load(arguments) as model:
        rows = [(name, tensor.dtype, " x ".join(map(str, tensor.shape)), tensor.nbytes)
                for name, tensor in model.items() if fnmatch(name, arguments.pattern)]
        if not rows:
            raise mm.ArgumentError(f"no tensor's name matches {arguments.pattern!r}")
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        for name, dtype, shape, nbytes in rows:
            print(f"{name:<{widths[0]}}  {dtype:<{widths[1]}}  {shape:>{widths[2]}}  {nbytes:>14,}")
        print(f"{len(rows)} tensors, {show.size(sum(row[3] for row in rows))}")
