"""Measure a model's speed beside what this machine gives.

First the limits: memory read plainly and with the best prefetch, multiplications of random data.
Then decode at several depths and prefill of several lengths, in turns with the limits, because
machines drift; each repeat is held against the limits measured in it, and medians are shown.

--json prints one object:
  model, format, quantization, layers, cpu, isa, threads, repeat, kv_dtype
  limits      medians: plain_read and best_read in bytes per second, int8_ops, bf16_ops and f32_ops
              in operations per second (2 a multiply-add), of all threads together
  runs        a list of objects:
    kind                 "decode" or "prefill"
    depth                positions before the first token
    tokens               decoded one by one, or of the prompt
    tokens_per_second
    bytes_per_token      what must be read at least: at decode everything that a token needs, at
                         prefill that of the whole prompt, each weight once, over its tokens
    ops_per_token        what must be computed
    tera_ops             10^12 operations per second
    share_of_best_read   bytes per second over limits.best_read
    share_of_plain_read  the same over limits.plain_read
    share_of_peak        time that the operations take at the limits over the time they took
    share_of_roofline    of reading at best_read and computing at the peaks, the one that takes
                         longer, over the time it took
  predictions a list of objects, for each machine and run, of a model of 62 such layers:
    machine, layers, kind, depth, tokens, tokens_per_second, bytes_per_token
    needs_memory         bytes of the weights and of the keys and values
    memory               of the machine, null if not given
    fits                 false: tokens_per_second would need more memory; null if not known
  prompt_tokens, prefill_tokens_per_second, decode_tokens, decode_tokens_per_second
              of the first prefill and the first decode run

A prediction is the time that 62 layers need to read their bytes or to compute at the machine's
limits, whichever is longer, divided by the share_of_roofline reached here.

--check-plan prints what `minimax2 plan` predicts beside what is measured then, of tokens one by one
at each --depth and of prompts that long; --json, a list of objects: what, depth, predicted and
measured (tokens per second, or seconds to the first token), off (the share by which the prediction
is wrong).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from minimax2 import _native, show
from minimax2 import plan as planning
from minimax2.errors import ArgumentError, UnsupportedError
from minimax2.machine import HELP, PEAKS, Machine, parse_machine
from minimax2.model import Cost, Limits, Model, load
from minimax2.options import KvDtype
from minimax2.plan import CACHED, compute_seconds, whole
from minimax2.session import Session
from minimax2.synth import LIKE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LAYERS = 62  # of MiniMax-M2
DEPTHS = (0, 4096)
PROMPTS = (128, 512, 2048)


class Run(NamedTuple):
    """Something to be measured."""

    kind: str
    """"decode" or "prefill"."""
    depth: int
    """Positions before the first token."""
    tokens: int
    """Evaluated one by one, or together."""

    @property
    def name(self) -> str:
        """As people call it."""
        if self.kind == "decode":
            return f"decode at {self.depth:,}"
        return f"prefill {self.tokens:,}"

    def costs(self, model: Model, kv_dtype: KvDtype | None) -> tuple[Cost, Cost]:
        """Cost of the layers and of the rest: of a token in the middle, or of the prompt."""
        if self.kind == "decode":
            return model.cost(1, self.depth + self.tokens // 2, kv_dtype)
        return model.cost(self.tokens, self.depth, kv_dtype)

    @property
    def together(self) -> int:
        """Tokens that costs() counts."""
        return 1 if self.kind == "decode" else self.tokens


# ---- Arithmetic ----

def bound_seconds(cost: Cost, machine: Machine) -> float:
    """How long a Cost takes at least: reading or computing, whichever takes longer."""
    return max(cost.bytes / machine.read, compute_seconds(cost, machine))


def summarize(run: Run, cost: Cost, seconds: Sequence[float],
              limits: Sequence[Limits]) -> dict[str, Any]:
    """The JSON object of a run from its repeats.

    cost: of the whole model. seconds: for what `cost` counts, one a repeat. limits: the Limits
    measured beside them.
    """
    rates = [(1 / taken, here, Machine.here(here)) for taken, here in zip(seconds, limits)]
    return {
        "kind": run.kind, "depth": run.depth, "tokens": run.tokens,
        "tokens_per_second": run.together / median(seconds),
        "bytes_per_token": cost.bytes / run.together,
        "ops_per_token": cost.ops / run.together,
        "tera_ops": cost.ops / median(seconds) / 1e12,
        "share_of_best_read": median(cost.bytes * rate / here.best_read for rate, here, _ in rates),
        "share_of_plain_read": median(cost.bytes * rate / here.plain_read
                                      for rate, here, _ in rates),
        "share_of_peak": median(compute_seconds(cost, peak) * rate for rate, _, peak in rates),
        "share_of_roofline": median(bound_seconds(cost, peak) * rate for rate, _, peak in rates),
    }


def predict(run: Run, cost: Cost, share: float, machine: Machine,
            needs: float) -> dict[str, Any]:
    """The JSON object of a prediction.

    cost: of the model with LAYERS layers. share: of the roofline, as reached here. needs: bytes of
    memory.
    """
    return {
        "machine": machine.name, "layers": LAYERS, "kind": run.kind, "depth": run.depth,
        "tokens": run.tokens,
        "tokens_per_second": run.together * share / bound_seconds(cost, machine),
        "bytes_per_token": cost.bytes / run.together,
        "needs_memory": needs, "memory": machine.memory,
        "fits": None if machine.memory is None else needs <= machine.memory,
    }


def memory_needed(model: Model, run: Run, kv_dtype: KvDtype | None = None) -> float:
    """Bytes of a model of LAYERS such layers with the keys and values of a run."""
    times = LAYERS / model.config.num_hidden_layers
    # So many tokens need every expert.
    layers = model.cost(model.config.max_position_embeddings)[0].weight_bytes
    cached = min(run.depth + run.tokens, model.config.max_position_embeddings - 1)
    return times * (layers + model.cost(1, cached, kv_dtype)[0].kv_bytes) + model.nbytes - layers


# ---- Measuring ----

def measure(model: Model, depths: Iterable[int], prompts: Iterable[int], *, decode: int = 32,
            repeat: int = 5, chunk: int | None = None, kv_dtype: KvDtype | None = None,
            machines: Iterable[Mapping[str, Any]] = (),
            watch: Callable[[str], object] | None = None) -> dict[str, Any]:
    """Measure and predict: the object that --json prints, a dict.

    depths, prompts: of the decode and the prefill runs. decode: tokens of a decode run. chunk,
    kv_dtype: as in Model.session(). machines: facts of parse_machine(). watch: called with the name
    of what comes next, steps(...) times.
    """
    watch = watch or (lambda name: None)
    runs = [Run("decode", depth, decode) for depth in depths]
    runs += [Run("prefill", 0, prompt) for prompt in prompts]
    sessions = _prepare(model, runs, chunk, kv_dtype, watch)
    cache = next(iter(sessions.values())).kv_dtype
    limits: list[Limits] = []
    seconds: dict[Run, list[float]] = {run: [] for run in runs}
    try:
        for _ in range(repeat):
            watch("limits")
            limits.append(model.limits())
            for run in runs:
                watch(run.name)
                seconds[run].append(_time(model, run, sessions[run]))
    finally:
        for session in sessions.values():
            session.close()
    middle = Limits(*map(median, zip(*limits)))
    here = Machine.here(middle)
    everywhere = [here, *(Machine.described(facts, here, middle.threads) for facts in machines)]
    results: list[dict[str, Any]] = []
    predictions: list[dict[str, Any]] = []
    for run in runs:
        layers, rest = run.costs(model, kv_dtype)
        results.append(summarize(run, whole(layers, rest), seconds[run], limits))
        full = whole(layers, rest, LAYERS / model.config.num_hidden_layers)
        needs = memory_needed(model, run, kv_dtype)
        predictions += [predict(run, full, results[-1]["share_of_roofline"], machine, needs)
                        for machine in everywhere]
    first = {kind: next(result for result in results if result["kind"] == kind)
             for kind in ("prefill", "decode")}
    return {
        "model": str(model.path), "format": model.info("format"),
        "quantization": model.info("quantization"), "layers": model.config.num_hidden_layers,
        "cpu": _native.cpu(), "isa": model.info("isa"), "threads": model.threads, "repeat": repeat,
        "kv_dtype": cache,
        "limits": {name: value for name, value in middle._asdict().items() if name != "threads"},
        "runs": results, "predictions": predictions,
        "prompt_tokens": first["prefill"]["tokens"], "decode_tokens": decode,
        "prefill_tokens_per_second": first["prefill"]["tokens_per_second"],
        "decode_tokens_per_second": first["decode"]["tokens_per_second"]}


def steps(depths: Sequence[int], prompts: Sequence[int], repeat: int) -> int:
    """How often measure() calls its watcher."""
    runs = len(depths) + len(prompts)
    return runs + repeat * (runs + 1)


def _ids(model: Model, first: int, count: int) -> list[int]:
    """Any ids will do; a fixed walk over the vocabulary gives every repeat the same work."""
    return [7919 * i % model.config.vocab_size for i in range(first, first + count)]


def _prepare(model: Model, runs: Iterable[Run], chunk: int | None, kv_dtype: KvDtype | None,
             watch: Callable[[str], object]) -> dict[Run, Session]:
    """A session a run at its depth, after a run that does not count: maps and caches are warm."""
    sessions: dict[Run, Session] = {}
    for run in runs:
        watch(f"warming up, {run.name}")
        sessions[run] = model.session(context=run.depth + run.tokens, chunk=chunk,
                                      kv_dtype=kv_dtype)
        if run.depth:
            sessions[run].feed(_ids(model, 0, run.depth)).run()
        _time(model, run, sessions[run])
    return sessions


def _time(model: Model, run: Run, session: Session) -> float:
    """Seconds for what run.costs() counts."""
    session.rewind(run.depth)
    ids = _ids(model, run.depth, run.tokens)
    start = time.perf_counter()
    for first in range(0, run.tokens, run.together):
        session.feed(ids[first:first + run.together]).run()
    return (time.perf_counter() - start) / (run.tokens / run.together)


# ---- Predictions beside measurements ----

def check_plan(model: Model, depths: Iterable[int], *, decode: int = 32, repeat: int = 3,
               chunk: int | None = None, kv_dtype: Any = None) -> list[dict[str, Any]]:
    """The list that --check-plan --json prints: predictions are made before anything is measured.

    Decoding is measured behind a prompt of each depth, whose own time counts once, for it was
    evaluated after a piece of it that does not count.
    """
    depths = sorted(depths)
    speed = planning.measure(model, kv_dtype, chunk)
    made = planning.plan(model, depths[-1] + decode, 1, kv_dtype, chunk, speed=speed,
                         depths=[depth + decode // 2 for depth in depths] + depths)
    at = {row["depth"]: row for row in made["depths"]}
    rows: list[dict[str, Any]] = []

    def add(what: str, depth: int, predicted: float, measured: float) -> None:
        rows.append({"what": what, "depth": depth, "predicted": predicted, "measured": measured,
                     "off": predicted / measured - 1})

    with model.session(context=depths[-1] + decode, kv_dtype=kv_dtype, chunk=chunk) as session:
        session.feed(_ids(model, 0, min(made["chunk"], session.context))).run()
        for depth in depths:
            session.rewind(0)
            start = time.perf_counter()
            if depth:
                session.feed(_ids(model, 0, depth)).run()
                add("prompt", depth, at[depth]["seconds_to_first_token"],
                    time.perf_counter() - start)
            this = Run("decode", depth, decode)
            _time(model, this, session)
            taken = median(_time(model, this, session) for _ in range(repeat))
            add("decode", depth, at[depth + decode // 2]["tokens_per_second"], 1 / taken)
    return rows


def checked(rows: Iterable[Mapping[str, Any]]) -> str:
    """The list of check_plan() as a table."""
    lines = [f"{'':26}{'predicted':>12}{'measured':>12}{'off':>8}"]
    for row in rows:
        name = (f"decode at {row['depth']:,}, tokens/s" if row["what"] == "decode"
                else f"prompt of {row['depth']:,}, s")
        lines.append(f"{name:<26}{row['predicted']:>12.4g}{row['measured']:>12.4g}"
                     f"{row['off']:>+8.0%}")
    return "\n".join(lines)


# ---- Showing ----

def report(result: Mapping[str, Any], model: Model) -> str:
    """The result as text for people."""
    limits, config = result["limits"], model.config
    layers = f"{result['layers']} layer" + "s" * (result["layers"] > 1)
    lines = [
        f"{result['model']}: {result['quantization']}, {layers}, {show.size(model.nbytes)}",
        f"{result['cpu']}; {result['isa']} kernels, {result['threads']} threads, keys and "
        f"values in {result['kv_dtype']}, medians of {result['repeat']}",
        "",
        f"read    {limits['best_read'] / 1e9:8.1f} GB/s at best, "
        f"{limits['plain_read'] / 1e9:.1f} GB/s plainly",
        f"compute {limits['int8_ops'] / 1e12:8.2f} TOP/s int8, {limits['bf16_ops'] / 1e12:.2f} "
        f"TFLOP/s bf16, {limits['f32_ops'] / 1e12:.2f} TFLOP/s f32",
        "",
        "                           tokens/s   MB/token     GB/s   of best  of plain     TOP/s  "
        "of peak  of roof",
    ]
    for run in result["runs"]:
        rate = run["bytes_per_token"] * run["tokens_per_second"]
        megabytes = run["bytes_per_token"] / 1e6
        lines.append(
            f"{Run(run['kind'], run['depth'], run['tokens']).name:<22}"
            f"{run['tokens_per_second']:>13,.1f}{megabytes:>11,.{1 if megabytes >= 10 else 3}f}"
            f"{rate / 1e9:>9.1f}{run['share_of_best_read']:>10.0%}"
            f"{run['share_of_plain_read']:>10.0%}{run['tera_ops']:>10.3f}"
            f"{run['share_of_peak']:>9.0%}{run['share_of_roofline']:>9.0%}")
    if model.nbytes < CACHED:
        lines += ["", f"At {show.size(model.nbytes)} this model lies in the caches in part or in "
                      "whole: its shares of the read limits can exceed 100 %."]
    m2 = LIKE["m2"]
    if (config.hidden_size, config.intermediate_size, config.num_local_experts) == (
            m2["hidden"], m2["expert_size"], m2["experts"]):
        subject = f"MiniMax-M2 whole, {LAYERS} layers"
    else:
        subject = f"{LAYERS} layers of these widths, which are not MiniMax-M2's"
    lines += ["", f"Prediction for {subject}, in tokens/s:",
              "the roof (bytes at the best read or operations at the peaks, what takes longer) "
              "times the share of it reached above"]
    names = [Run(run["kind"], run["depth"], run["tokens"]).name for run in result["runs"]]
    widths = [max(12, len(name) + 2) for name in names]
    machines = list(dict.fromkeys(made["machine"] for made in result["predictions"]))
    left = max(map(len, machines))
    lines.append(" " * left + "".join(f"{name:>{w}}" for name, w in zip(names, widths)))
    for machine in machines:
        made = [entry for entry in result["predictions"] if entry["machine"] == machine]
        line = f"{machine:<{left}}" + "".join(f"{entry['tokens_per_second']:>{w},.1f}"
                                              for entry, w in zip(made, widths))
        most = max(made, key=lambda entry: entry["needs_memory"])
        if most["fits"] is False:
            line += (f"   does not fit: needs {show.size(most['needs_memory'])}, has "
                     f"{show.size(most['memory'])}")
        lines.append(line)
    return "\n".join(lines)


def _figure() -> type[Figure]:
    """matplotlib's Figure, without its global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UnsupportedError("--plot needs matplotlib: pip install matplotlib") from None
    return Figure


def plot(result: Mapping[str, Any], path: str) -> None:
    """The roofline as a picture: operations per byte against operations per second.

    path: its ending decides the format. Raises UnsupportedError without matplotlib, OSError.
    """
    limits = result["limits"]
    figure = _figure()(figsize=(9, 6), dpi=150, layout="constrained")
    axes = figure.subplots()
    peaks: dict[float, list[str]] = {}  # kinds that share a roof share its label
    for kind in PEAKS:
        peak = limits[f"{kind}_ops"]
        near = next((old for old in peaks if abs(old / peak - 1) < 0.05), peak)
        peaks.setdefault(near, []).append(kind)
    points = [(run["ops_per_token"] / run["bytes_per_token"], run["tera_ops"] * 1e12, run)
              for run in result["runs"]]
    best, plain, top = limits["best_read"], limits["plain_read"], max(peaks)
    left = min(x for x, _, _ in points) / 3
    right = max(top / plain, *(x for x, _, _ in points)) * 6
    roof: dict[str, Any] = dict(color="#222222", linewidth=1.8)
    for peak, kinds in peaks.items():
        axes.plot([peak / best, right], [peak, peak], **roof)
        axes.annotate(f"{', '.join(kinds)}\n{peak / 1e12:.2f} T/s", (right, peak), (6, 0),
                      textcoords="offset points", va="center", fontsize=9)
    for rate, style, name in ((best, "-", "best"), (plain, "--", "plain")):
        axes.plot([left, top / rate], [left * rate, top], style, **roof,
                  label=f"{name} read, {rate / 1e9:.1f} GB/s")
    colours = {"decode": "#c8553d", "prefill": "#2a6f97"}
    for kind, marker in (("decode", "o"), ("prefill", "s")):
        mine = [(x, y) for x, y, run in points if run["kind"] == kind]
        axes.plot(*zip(*mine), marker, color=colours[kind], markersize=8, label=kind, zorder=3)
    for x, y, run in points:
        axes.plot([x, x], [y, y / run["share_of_roofline"]], ":", color=colours[run["kind"]],
                  linewidth=1.2)
    axes.plot([], [], ":", color="#666666", label="left to the roof of a run's own mix")
    low = min(y for _, y, _ in points)
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(low / 4, top * 2.5),
             xlabel="operations per byte", ylabel="operations per second",
             title=f"{Path(result['model']).name}: {result['quantization']}, {result['isa']}, "
                   f"{result['threads']} threads")
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axes.legend(loc="upper left", frameon=False, fontsize=9)
    _label(figure, axes, points, colours)
    figure.savefig(path)


def _label(figure: Figure, axes: Axes, points: Iterable[tuple[float, float, Mapping[str, Any]]],
           colours: Mapping[str, str]) -> None:
    """Names beside the points, pushed down where they would lie on each other."""
    figure.canvas.draw()  # settles the transformation to pixels
    taken: list[tuple[float, float]] = []
    width, height = figure.dpi * 1.05, figure.dpi * 0.32
    for x, y, run in sorted(points, key=lambda point: -point[1]):
        at, level = place = axes.transData.transform((x, y))
        for other, used in taken:  # from above
            if abs(other - at) < width:
                level = min(level, used - height)
        taken.append((at, level))
        name = Run(run["kind"], run["depth"], run["tokens"]).name
        axes.annotate(f"{name}: {run['share_of_roofline']:.0%}\n"
                      f"{run['tokens_per_second']:,.0f} tokens/s",
                      (x, y), (9, (level - place[1]) * 72 / figure.dpi), va="center", fontsize=8,
                      textcoords="offset points", color=colours[run["kind"]], zorder=4,
                      bbox=dict(boxstyle="square,pad=0.1", color="white", alpha=0.8))


# ---- The command ----

def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


_numbers.__name__ = "numbers"  # argparse: "invalid numbers value"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `minimax2 bench`, onto an argparse parser."""
    parser.epilog = __doc__.partition("\n\n")[2] + "\n" + HELP
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--depth", type=_numbers, metavar="N,...",
                        help="positions before decoding (0,4096, as the model allows)")
    parser.add_argument("--prompt", type=_numbers, metavar="N,...",
                        help="prompt tokens (128,512,2048, as the model allows)")
    parser.add_argument("--decode", type=int, default=32, metavar="N",
                        help="tokens to decode at each depth (32)")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="medians count (5)")
    parser.add_argument("--chunk", type=int, metavar="N",
                        help="prompt tokens that go through the layers together")
    add_kv_dtype(parser)
    parser.add_argument("--machine", action="append", default=[], metavar="TEXT",
                        help="predict for this machine too; see below")
    parser.add_argument("--check-plan", action="store_true",
                        help="predictions of `minimax2 plan` beside measurements")
    parser.add_argument("--report", metavar="FILE", help="write FILE.md and FILE.json about this "
                        "machine, in less than eight minutes; see minimax2/report.py")
    parser.add_argument("--only", metavar="PARTS", help="of the report, such as limits,decode; the "
                        "others stay as FILE.json has them")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the roofline (needs matplotlib)")


def add_kv_dtype(parser: argparse.ArgumentParser) -> None:
    """The argument --kv-dtype of commands that make sessions."""
    parser.add_argument("--kv-dtype", metavar="TYPE", help="keep keys and values in bf16, f32 or "
                        "int8; default: bf16, with --precision exact f32")


def run(arguments: argparse.Namespace) -> None:
    """The command `minimax2 bench`."""
    for name, low in (("depth", 0), ("prompt", 1), ("decode", 1), ("repeat", 1)):
        given = getattr(arguments, name)
        for value in given if isinstance(given, list) else [low if given is None else given]:
            if value < low:
                raise ArgumentError(f"--{name} is {value}, must be at least {low}")
    machines = [parse_machine(text) for text in arguments.machine]
    if arguments.only and not arguments.report:
        raise ArgumentError("--only names parts of a report: give --report FILE too")
    if arguments.report:
        from minimax2 import report as reports

        if arguments.precision != "fast" or arguments.kv_dtype:
            raise ArgumentError("a report has its own fixed set: --precision and --kv-dtype are "
                                "for measurements without --report")
        only = arguments.only.split(",") if arguments.only else None
        with _Bar(len(only or reports.PARTS)) as bar:
            reports.report(arguments.report, arguments.model, threads=arguments.threads,
                           isa=arguments.isa, only=only, watch=bar)
        return
    if arguments.plot:
        _check_plot(arguments.plot)
    with load(arguments.model, threads=arguments.threads, isa=arguments.isa,
              precision=arguments.precision) as model:
        room = model.config.max_position_embeddings
        if arguments.decode > room:
            raise ArgumentError(f"--decode is {arguments.decode}: the model has {room} positions")
        depths = _fitting("depth", arguments.depth, DEPTHS, room - arguments.decode)
        prompts = _fitting("prompt", arguments.prompt, PROMPTS, room)
        if arguments.check_plan:
            rows = check_plan(model, depths, decode=arguments.decode, repeat=arguments.repeat,
                              chunk=arguments.chunk, kv_dtype=arguments.kv_dtype)
            print(json.dumps(rows) if arguments.json else checked(rows))
            return
        with _Bar(steps(depths, prompts, arguments.repeat)) as bar:
            result = measure(model, depths, prompts, decode=arguments.decode,
                             repeat=arguments.repeat, chunk=arguments.chunk,
                             kv_dtype=arguments.kv_dtype, machines=machines, watch=bar)
        text = json.dumps(result) if arguments.json else report(result, model)
    if arguments.plot:
        plot(result, arguments.plot)
    print(text)


def _fitting(name: str, given: list[int] | None, usual: Iterable[int], most: int) -> list[int]:
    """Distinct numbers: the given ones, or those of the usual ones that fit."""
    if given is None:
        given = [value for value in usual if value <= most] or [most]
    for value in given:
        if value > most:
            raise ArgumentError(f"--{name} is {value}: the model's positions leave room for {most}")
    return list(dict.fromkeys(given))


def _check_plot(path: str) -> None:
    """What would fail after minutes of measuring fails at once."""
    kinds = _figure()().canvas.get_supported_filetypes()
    if Path(path).suffix[1:].lower() not in kinds:
        raise ArgumentError(f"--plot {path}: its name must end in one of "
                            f"{', '.join('.' + kind for kind in sorted(kinds))}")
    if not Path(path).absolute().parent.is_dir():
        raise ArgumentError(f"--plot {path}: there is no such directory")


class _Bar:
    """A progress bar where somebody looks."""

    def __init__(self, total: int) -> None:
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm.auto import tqdm

            self._bar = tqdm(total=total, leave=False)
            self._begun = False

    def __call__(self, name: str) -> None:
        """The last step is over and this one begins."""
        if self._bar is not None:
            self._bar.update(self._begun)
            self._begun = True
            self._bar.set_description(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()
