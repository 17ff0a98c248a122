"""A report of a machine: a fixed set of measurements, for people who have other processors.

`minimax2 bench --report FILE` writes FILE.md to read and FILE.json, which `minimax2 plan --machine`
takes. It takes less than eight minutes and no network. Parts (--only measures some of them anew and
keeps the others of an earlier report):

  limits    what memory and arithmetic give; attention; the shares of them that the model reaches
  kernels   products of single matrices by format (a built tree with a compiler)
  decode    tokens one by one at depths
  prefill   prompts
  batch     sessions together
  plan      predictions beside measurements
  llama     llama.cpp on the same file, in turns (llama-cpp-python, a built tree)

Without -m the model is two layers of MiniMax-M2's width with half its experts in Q4_K_M, random
weights, written to a temporary folder and deleted again.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from minimax2 import _native, bench, plan, show
from minimax2.errors import ArgumentError, FormatError
from minimax2.machine import PEAKS
from minimax2.model import Model, load
from minimax2.synth import synth

TREE = Path(__file__).resolve().parents[2]
SYNTHETIC: dict[str, Any] = {"format": "q4_k_m", "layers": 2, "experts": 128, "vocab": 2048}
FORMATS = ("q4_k", "q8_0", "f8_e4m3")  # of the kernels' table
DEPTHS, PROMPTS, SESSIONS = (0, 4096, 16384), (128, 512, 2048), (1, 2, 4, 8, 16)
DECODE = 16  # tokens at each depth
PATIENCE = 60.0  # seconds that a run may be predicted to take
LIMIT = 150  # seconds of another program
TURNS = 3  # medians count


class _LeftOut(Exception):
    """Why a part, or something of it, was not measured."""


# ---- Parts: each gives what it measured, a dict ----

CONDITIONS = {"excluded", "seconds", "at", "load_before", "stolen"}  # that every part has
Exclude = Callable[[str], None]


def _limits(model: Model, made: Mapping[str, Any], exclude: Exclude) -> dict[str, Any]:
    """What the machine gives, and the shares that this model reaches."""
    found = [model.limits() for _ in range(TURNS)]
    speeds = [plan.measure(model) for _ in range(TURNS)]
    attention: dict[str, dict[str, float]] = {}
    for name in ("f32", "bf16", "int8"):
        rates = [model.attention_limits(name) for _ in range(TURNS)]
        attention[name] = {"read": median(rate.read for rate in rates),
                           "ops": median(rate.ops for rate in rates)}
    kind = (model.info("quantization") or "").split(",")[0]
    return {"plain_read": median(each.plain_read for each in found),
            "read": median(each.best_read for each in found),
            **{key: median(getattr(each, f"{key}_ops") for each in found) for key in PEAKS},
            "attention": attention,
            "shares": {kind: {"decode": median(speed.decode for speed in speeds),
                              "prefill": median(speed.prefill for speed in speeds)}}}


def _kernels(model: Model, made: Mapping[str, Any], exclude: Exclude) -> dict[str, Any]:
    """The text of tests/bench/kernels.c by format."""
    if not (TREE / "csrc" / "Makefile").exists() or not shutil.which("make"):
        raise _LeftOut("needs a tree with the C sources, and make")
    tables = {}
    for name in FORMATS:
        words = f"{model.info('isa')} {name} {model.threads}"
        tables[name] = _output(["make", "-s", "-C", str(TREE / "csrc"), "bench-kernels",
                                f"ARGS={words}"])
    return {"tables": tables}


def _patient(model: Model, depths: Iterable[int], prompts: Iterable[int],
             exclude: Exclude) -> tuple[list[int], list[int]]:
    """Those of these that the model has positions for, and that will not take too long."""
    speed, shape = plan.measure(model), plan.Shape(model, None)
    kept: dict[str, list[int]] = {"decode at": [], "a prompt of": []}
    room = model.config.max_position_embeddings - DECODE
    for name, lengths in (("decode at", depths), ("a prompt of", prompts)):
        for length in lengths:
            seconds = speed.prompt(shape, length, plan.ROWS)
            if length > room:
                exclude(f"{name} {length:,}: the model has {room + DECODE:,} positions")
            elif seconds > PATIENCE:
                exclude(f"{name} {length:,}: would take {plan.seconds(seconds)} to prepare")
            else:
                kept[name].append(length)
    return kept["decode at"], kept["a prompt of"]


def _runs(model: Model, depths: Sequence[int], prompts: Sequence[int]) -> dict[str, Any]:
    result = bench.measure(model, depths or [0], prompts or [16], decode=DECODE, repeat=TURNS)
    return {"limits": result["limits"], "runs": [
        run for run in result["runs"]
        if (run["depth"] if run["kind"] == "decode" else run["tokens"])
        in (depths if run["kind"] == "decode" else prompts)]}


def _decode(model: Model, made: Mapping[str, Any], exclude: Exclude) -> dict[str, Any]:
    depths, _ = _patient(model, DEPTHS, (), exclude)
    return _runs(model, depths, ())


def _prefill(model: Model, made: Mapping[str, Any], exclude: Exclude) -> dict[str, Any]:
    _, prompts = _patient(model, (), PROMPTS, exclude)
    return _runs(model, (), prompts)


def _batch(model: Model, made: Mapping[str, Any], exclude: Exclude) -> dict[str, Any]:
    """Tokens per second of sessions that decode together."""
    tokens, rates = DECODE, {}
    sessions = [model.session(context=64) for _ in range(max(SESSIONS))]
    try:
        for i, session in enumerate(sessions):
            session.feed([(31 * i + 7 * j) % model.config.vocab_size for j in range(16)]).run()
        for count in SESSIONS:
            taken = []
            with model.batch(sessions[:count]) as together:
                for _ in range(4):
                    for session in sessions[:count]:
                        session.rewind(16)
                    start = time.perf_counter()
                    for i in range(tokens):
                        for j, session in enumerate(sessions[:count]):
                            session.feed([(7919 * i + 31 * j) % model.config.vocab_size])
                        together.run()
                    taken.append(time.perf_counter() - start)
            rates[str(count)] = count * tokens / median(taken[1:])
    finally:
        for session in sessions:
            session.close()
    return {"tokens_per_second": rates}


def _plan(model: Model, made: Mapping[str, Any], exclude: Exclude) -> dict[str, Any]:
    depths, _ = _patient(model, DEPTHS, (), exclude)
    return {"rows": bench.check_plan(model, depths or [0], decode=DECODE)}


def _llama(model: Model, made: Mapping[str, Any], exclude: Exclude) -> dict[str, Any]:
    """Rows of tests/bench/compare.py on the same file."""
    script = TREE / "tests" / "bench" / "compare.py"
    python = os.environ.get("LLAMA_PYTHON", sys.executable)
    if not script.exists():
        raise _LeftOut("needs a source tree")
    if model.info("format") != "gguf":
        raise _LeftOut("llama.cpp opens GGUF only")
    if python == sys.executable and not importlib.util.find_spec("llama_cpp"):
        raise _LeftOut("llama-cpp-python is not installed (LLAMA_PYTHON names an interpreter that "
                       "has it)")
    with tempfile.TemporaryDirectory() as folder:
        _output([sys.executable, str(script), "-m", str(model.path), "--what", "pp512all,tg32",
                 "--repeat", "3", "-t", str(model.threads), "--llama-python", python, "--results",
                 folder])
        text = "".join(path.read_text(encoding="utf-8") for path in Path(folder).glob("*.md"))
    lines = [line.strip("| \n").split(" | ") for line in text.splitlines() if line[:2] == "| "]
    if len(lines) < 2:
        raise _LeftOut("compare.py has measured nothing")
    return {"rows": [dict(zip(lines[0], line)) for line in lines[1:]]}


def _output(command: Sequence[str]) -> str:
    """What a program prints. Raises _LeftOut."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        raise _LeftOut(f"{command[0]} took more than {LIMIT} s") from None
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["nothing was said"]
        raise _LeftOut(f"{Path(command[0]).name} failed: {last[0]}")
    return done.stdout


PARTS: dict[str, Callable[[Model, Mapping[str, Any], Exclude], dict[str, Any]]] = {
    "limits": _limits, "kernels": _kernels, "decode": _decode, "prefill": _prefill,
    "batch": _batch, "plan": _plan, "llama": _llama}


# ---- Conditions ----

def _line(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def commit() -> str:
    """Short hash of the tree's commit, + if it was changed; "unknown" without git.

    A tree without git may have it in build/borrowed (tests/bench/borrowed.sh).
    """
    if told := _line(str(TREE / "build" / "borrowed" / "commit")):
        return told
    if not shutil.which("git") or not (TREE / ".git").exists():
        return "unknown"
    git = ["git", "-C", str(TREE)]
    name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True).returncode
    return (name.stdout.strip() or "unknown") + "+" * bool(changed)


def conditions(model: Model) -> dict[str, Any]:
    """What the figures depend on beside the code."""
    present, available = _native.memory()
    cpuinfo = _line("/proc/cpuinfo") or ""
    frequency = re.search(r"^cpu MHz\s*: (.*)$", cpuinfo, re.M)
    return {
        "cpu": _native.cpu(), "cpus": os.cpu_count(), "threads": model.threads,
        "isa": model.info("isa"), "mhz_now": frequency and float(frequency[1]),
        "virtual": bool(re.search(r"^flags.*\bhypervisor\b", cpuinfo, re.M)),
        "governor": _line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "huge_pages": _line("/sys/kernel/mm/transparent_hugepage/enabled"),
        "memory": present, "memory_available": available,
        "kernel": platform.release(), "python": platform.python_version(),
        "version": _native.VERSION, "commit": commit(), "model": str(model.path),
        "model_bytes": model.nbytes, "quantization": model.info("quantization"),
        "layers": model.config.num_hidden_layers}


def _stolen() -> float:
    """Seconds that other machines of the host took from all CPUs since it started."""
    words = (_line("/proc/stat") or "").split("\n")[0].split()
    return int(words[8]) / os.sysconf("SC_CLK_TCK") if len(words) > 8 else 0.0


# ---- The report ----

def report(file: str, path: str | None, *, threads: int | None = None, isa: Any = None,
           only: Iterable[str] | None = None,
           watch: Callable[[str], object] | None = None) -> dict[str, Any]:
    """Measure and write FILE.json and FILE.md; returns what stands in the first, a dict.

    path: of the model; None: a synthetic one. only: names of PARTS; the others stay as an earlier
    report at the same place has them. watch: called with the name of each part.
    """
    base = Path(re.sub(r"\.(md|json)$", "", file))
    wanted = list(PARTS) if only is None else list(only)
    for name in wanted:
        if name not in PARTS:
            raise ArgumentError(f"--only: {name!r} is none of {', '.join(PARTS)}")
    made: dict[str, Any] = {"parts": {}}
    store = base.with_name(base.name + ".json")
    if only is not None and store.exists():
        try:
            made = json.loads(store.read_text(encoding="utf-8"))
            made["parts"].items()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise FormatError(f"{store} is no report: {error!r}; move it away") from None
    if not base.absolute().parent.is_dir():
        raise ArgumentError(f"--report {file}: there is no such directory")
    with _model(path, threads, isa) as model:
        made["conditions"] = conditions(model)
        for name in wanted:
            if watch:
                watch(name)
            made["parts"][name] = _part(name, model, made)
            made["machine"] = _machine(made)
            store.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
            base.with_name(base.name + ".md").write_text(text(made), encoding="utf-8")
    return made


@contextmanager
def _model(path: str | None, threads: int | None, isa: Any) -> Iterator[Model]:
    if path is not None:
        with load(path, threads=threads, isa=isa) as model:
            yield model
        return
    with tempfile.TemporaryDirectory(prefix="minimax2-report-") as folder:
        file = Path(folder) / "q4_k_m.gguf"
        synth(file, **SYNTHETIC)
        with load(file, threads=threads, isa=isa) as model:
            yield model


def _part(name: str, model: Model, made: Mapping[str, Any]) -> dict[str, Any]:
    """A part with its own conditions and what it leaves out."""
    excluded: list[str] = []
    start, stolen, load_before = time.perf_counter(), _stolen(), os.getloadavg()[0]
    try:
        found = PARTS[name](model, made, excluded.append)
    except _LeftOut as error:
        found = {}
        excluded.append(str(error))
    seconds = time.perf_counter() - start
    return {**found, "excluded": excluded, "seconds": round(seconds, 1),
            "at": datetime.datetime.now().isoformat(timespec="seconds"),
            "load_before": load_before,
            "stolen": round((_stolen() - stolen) / max(seconds, 1e-9) / (os.cpu_count() or 1), 4)}


def _machine(made: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `minimax2 plan --machine` takes: machine.parse_machine()."""
    limits = made["parts"].get("limits")
    if not limits or "read" not in limits:
        return None
    told = made["conditions"]
    return {"name": told["cpu"], "cores": told["threads"], "ram": told["memory"],
            **{key: limits[key] for key in ("read", *PEAKS, "attention", "shares")}}


# ---- As text ----

def text(made: Mapping[str, Any]) -> str:
    """The report in Markdown."""
    told, parts = made["conditions"], made["parts"]
    lines = [
        f"# {told['cpu']}", "",
        f"Written by `minimax2 bench --report`; minimax2 {told['version']}, commit "
        f"{told['commit']}.", "",
        f"- model: {told['quantization']}, {told['layers']} layers, "
        f"{show.size(told['model_bytes'])}; {told['isa']} kernels, {told['threads']} threads",
        f"- machine: {told['cpus']} CPUs{', virtual' * told['virtual']}, "
        f"{show.size(told['memory'])} of memory ({show.size(told['memory_available'])} available), "
        f"Linux {told['kernel']}; governor {told['governor'] or 'not told'}; huge pages: "
        f"{told['huge_pages'] or 'not told'}",
        "- times are medians; shares are of the best read of memory and of the peak of products, "
        "measured beside them", ""]
    writers = {"limits": _limits_text, "kernels": _kernels_text, "decode": _runs_text,
               "prefill": _runs_text, "batch": _batch_text, "plan": _plan_text,
               "llama": _llama_text}
    for name in PARTS:
        if name in parts:
            part = parts[name]
            lines += [f"## {name}", ""]
            if part.keys() - CONDITIONS:  # something was measured
                lines += [*writers[name](part), ""]
            lines += [f"Left out: {reason}." for reason in part["excluded"]]
            lines += [f"{part['at']}, {part['seconds']} s; load before {part['load_before']:.2f}; "
                      f"{part['stolen']:.1%} of the processors' time went to other machines.", ""]
    return "\n".join(lines)


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]


def _limits_text(part: Mapping[str, Any]) -> list[str]:
    rows = [("best read", f"{part['read'] / 1e9:.1f} GB/s"),
            ("plain read", f"{part['plain_read'] / 1e9:.1f} GB/s")]
    rows += [(f"{key} products", f"{part[key] / 1e12:.2f} TOP/s") for key in PEAKS]
    for name, rates in part["attention"].items():
        rows.append((f"attention, {name} cache", f"{rates['read'] / 1e9:.1f} GB/s for one token, "
                                                 f"{rates['ops'] / 1e12:.3f} TOP/s of a prompt"))
    for kind, share in part["shares"].items():
        rows.append((f"{kind}: share of the roof", f"{share['decode']:.0%} with one row, "
                                                   f"{share['prefill']:.0%} with {plan.ROWS:,}"))
    return _table(("what", "this machine"), rows)


def _kernels_text(part: Mapping[str, Any]) -> list[str]:
    return ["```", *(table.rstrip() for table in part["tables"].values()), "```"]


def _runs_text(part: Mapping[str, Any]) -> list[str]:
    return _table(
        ("what", "tokens/s", "GB/s", "of best read", "TOP/s", "of peak"),
        [(bench.Run(run["kind"], run["depth"], run["tokens"]).name,
          f"{run['tokens_per_second']:,.1f}",
          f"{run['bytes_per_token'] * run['tokens_per_second'] / 1e9:.1f}",
          f"{run['share_of_best_read']:.0%}", f"{run['tera_ops']:.3f}",
          f"{run['share_of_peak']:.0%}") for run in part["runs"]])


def _batch_text(part: Mapping[str, Any]) -> list[str]:
    return _table(("sessions", "tokens/s of all"),
                  [(count, f"{rate:,.1f}") for count, rate in part["tokens_per_second"].items()])


def _plan_text(part: Mapping[str, Any]) -> list[str]:
    return ["```", bench.checked(part["rows"]), "```"]


def _llama_text(part: Mapping[str, Any]) -> list[str]:
    heads = [head for head in part["rows"][0] if head not in ("date", "commit", "format")]
    return _table(heads, [[row[head] for head in heads] for row in part["rows"]])
