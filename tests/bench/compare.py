"""minimax2 beside llama.cpp: the same GGUF file, the same token ids, in turns (A B A B ...).

    make compare ARGS="--format q4_k_m,q8_0 --what pp512,tg32"
    python tests/bench/compare.py -m model.gguf --what pp2048,tg16@4096 --repeat 5
    make compare ARGS="--format q4_k_m --what tg16@32768 --kv-dtype int8 --llama-kv f16"

Each engine runs in a process of its own (engine.py), so that the peaks of resident memory are
honest and a crash stays where it happens. llama.cpp is tried with and without weight repacking and,
for long prompts, with micro-batches of 512 and 2048; the best setting then takes part in the turns,
in which it is measured afresh. Both are warm. Medians go to the screen and, a row each, to the
machine's table in results/. Files of --format are random weights of minimax2.synth, deleted again.

Use a quiet machine: beside other work llama.cpp loses far more than its share (its threads spin for
each other at every operation), and the ratio flatters minimax2.
"""

import argparse
import datetime
import json
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import minimax2 as mm
from minimax2.formats import FORMATS, MIXES
from minimax2.synth import synth
from tqdm.auto import tqdm

HERE = Path(__file__).resolve().parent
ALIKE = 0.9  # correlation of logits below which the engines did not do the same work
SPARE = 2e9  # bytes of memory to leave free
LONG = 512  # tokens of a step, beyond which larger micro-batches are tried
WARM_UP = 128  # tokens to run, at most, before the time counts

COLUMNS = ("date", "commit", "format", "layers", "experts", "vocabulary", "threads", "isa", "what",
           "minimax2, tokens/s", "llama.cpp, tokens/s", "llama-cpp-python", "ratio",
           "peak memory, GB")
HEAD = """# {machine}

Written by `tests/bench/compare.py`, which describes the method; one row a comparison.

- commit: the last one that touched csrc or python, + with changes on top.
- what: pp512, a prompt of 512 tokens; tg32, 32 tokens one by one; @N, behind N others. Of a
  prompt llama.cpp computes the last layer only for the rows whose logits are wanted, one for pp512,
  all for pp512all: that row tells what whole layers cost.
- tokens/s: medians of runs in turns, ± half the distance between the quartiles; ratio: minimax2's
  to llama.cpp's; peak memory: resident, minimax2's / llama.cpp's, pages of the file included.
- llama.cpp: flash attention, KV cache in f16 (minimax2: bf16) unless `what` names both, built with
  {features},
  unless its version says that another build was used, to compare with MM2_ISA=avx2.

"""

# What a virtual machine hides: (vendor, family, lowest and highest model) to the generation.
GENERATIONS = (
    ("AuthenticAMD", 23, 0x30, 0xff, "zen2"), ("AuthenticAMD", 25, 0x00, 0x0f, "zen3"),
    ("AuthenticAMD", 25, 0x10, 0x1f, "zen4"), ("AuthenticAMD", 25, 0x20, 0x5f, "zen3"),
    ("AuthenticAMD", 25, 0x60, 0xff, "zen4"), ("AuthenticAMD", 26, 0x00, 0xff, "zen5"),
    ("GenuineIntel", 6, 85, 85, "skylake"), ("GenuineIntel", 6, 106, 108, "icelake"),
    ("GenuineIntel", 6, 143, 143, "sapphirerapids"),
    ("GenuineIntel", 6, 173, 174, "graniterapids"), ("GenuineIntel", 6, 207, 207, "emeraldrapids"))


class What(NamedTuple):
    """One thing to measure: `tokens` behind `depth` others, `step` at a time."""

    name: str
    depth: int
    tokens: int
    step: int
    every: bool
    """All rows pass through all layers."""


def parse_what(text):
    """"pp512", "pp512all", "tg32", "tg16@4096"; "tg" alone is tg32. Raises ValueError."""
    text = "tg32" if text == "tg" else text
    match = re.fullmatch(r"(?:pp(\d+)(all)?|tg(\d+))(?:@(\d+))?", text)
    tokens, depth = (int(match[1] or match[3]), int(match[4] or 0)) if match else (0, 0)
    if not tokens:
        raise ValueError(f"{text!r} is no pp512, pp512all, tg32 or tg16@4096")
    return What(text, depth, tokens, tokens if match[1] else 1, bool(match[2]))


def machine_name(cpuinfo, fallback):
    """Processor, generation and cores out of the text of /proc/cpuinfo: amd-epyc-zen5-2-cores."""
    blocks = [dict(re.findall(r"^(.*?)\s*: (.*)$", block, re.M))
              for block in cpuinfo.strip().split("\n\n")]
    processors = [block for block in blocks if "processor" in block] or [{}]
    cores = len({(b.get("physical id"), b.get("core id", b.get("processor"))) for b in processors})
    first = processors[0]
    name = re.sub(r"\(R\)|\(TM\)|\bCPU\b|\bProcessor\b|@.*|\b\d+-Core\b", " ",
                  first.get("model name", fallback), flags=re.I)
    vendor = first.get("vendor_id")
    family, model = (int(first.get(key, -1)) for key in ("cpu family", "model"))
    for *known, lowest, highest, generation in GENERATIONS:
        if known == [vendor, family] and lowest <= model <= highest:
            name += " " + generation
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return f"{slug}-{cores}-core" + ("s" if cores != 1 else "")


def this_machine():
    """machine_name() of this one."""
    return machine_name(Path("/proc/cpuinfo").read_text(encoding="utf-8"), platform.machine())


class Speed(NamedTuple):
    """Tokens per second: median of some runs, and half the distance between the quartiles."""

    median: float
    spread: float

    @classmethod
    def of(cls, tokens, seconds):
        """Of runs of `tokens` tokens that took these times."""
        speeds = [tokens / s for s in seconds]
        if len(speeds) == 1:
            return cls(speeds[0], 0.0)
        low, middle, high = statistics.quantiles(speeds, n=4, method="inclusive")
        return cls(middle, (high - low) / 2)

    def __str__(self):
        digits = 1 if self.median < 100 else 0
        return f"{self.median:.{digits}f} ± {self.spread:.{digits}f}"


def table_row(cells):
    """A line of a Markdown table."""
    return "| " + " | ".join(str(cell) for cell in cells) + " |\n"


def append_rows(path, head, columns, rows):
    """Add rows, tuples of cells, to a table; where there is none it is begun under `head`."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(head + table_row(columns) + "|---" * len(columns) + "|\n",
                        encoding="utf-8")
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(table_row(row) for row in rows)


# ---- Engines ----

class EngineError(Exception):
    """An engine could not do what was asked, or died."""


class Engine:
    """A process of engine.py with a checkpoint open; `facts` is what it says about it."""

    def __init__(self, name, python, **opening):
        self.name = name
        self.process = subprocess.Popen([python, HERE / "engine.py", name], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, encoding="utf-8")
        try:
            self.facts = self.ask(**opening)
        except BaseException:
            self.close()
            raise

    def ask(self, **request):
        """The answer to one request, a dict. Raises EngineError."""
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise EngineError(f"{self.name} died, exit code {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise EngineError(f"{self.name}: {answer['error']}")
        return answer

    def close(self):
        """End the process."""
        self.process.kill()
        self.process.communicate()


class Engines:
    """Engines by what they were opened with, kept open if memory allows, else one at a time."""

    def __init__(self, path, arguments, together):
        self.path, self.arguments, self.together = path, arguments, together
        self.open = {}

    def __getitem__(self, key):
        """The engine ("minimax2",) or ("llama.cpp", repack)."""
        if key in self.open and self.open[key].process.poll() is not None:
            del self.open[key]
        if key not in self.open:
            if not self.together:
                self.close()
            arguments = self.arguments
            opening = {"open": str(self.path), "threads": arguments.threads}
            if key[0] == "minimax2":
                made = Engine(key[0], sys.executable, isa=arguments.isa, **opening)
            else:
                made = Engine(key[0], arguments.llama_python, repack=key[1], **opening)
            self.open[key] = made
        return self.open[key]

    def run(self, key, what, most=None, **settings):
        """Measure once, at most so many tokens: the answer of the engine."""
        engine = self[key]
        request = {"depth": what.depth, "step": what.step, "context": what.depth + what.tokens,
                   "every": what.every, **settings}
        if not self.together:
            engine.ask(tokens=min(what.tokens, WARM_UP), **request)
        time.sleep(0.05)  # until the threads of the other engine have stopped spinning
        return engine.ask(tokens=min(what.tokens, most or what.tokens), **request)

    def close(self):
        """End all."""
        for engine in self.open.values():
            engine.close()
        self.open.clear()


def correlation_of(ours, theirs):
    """Pearson's, of the logits in two answers."""
    return statistics.correlation(ours["logits"], theirs["logits"])


def best_setting(engines, what, kv):
    """Key and settings with which llama.cpp was fastest in one warm run each, its cache of type kv.

    Reports all. Settings with which it dies, as repacking does on some machines, do not count.
    Raises EngineError if none is left.
    """
    tried = []
    for repack in (True, False):
        for ubatch in (512, 2048) if what.step > LONG else (512,):
            key, settings = ("llama.cpp", repack), {"ubatch": ubatch, "kv": kv}
            try:
                engines.run(key, what, WARM_UP, **settings)
                seconds = engines.run(key, what, **settings)["seconds"]
            except EngineError as error:
                print(f"  {what.name}, {named(key, settings)}: {error}", file=sys.stderr)
                continue
            tried.append((seconds, key, settings))
            print(f"  {what.name}, llama.cpp {named(key, settings)}: "
                  f"{what.tokens / seconds:.1f} tokens/s", flush=True)
    if not tried:
        raise EngineError("llama.cpp works with none of its settings")
    return min(tried, key=lambda setting: setting[0])[1:]


def named(key, settings):
    """A setting of llama.cpp in words."""
    return ("repack" if key[1] else "no repack") + f", ubatch {settings['ubatch']}"


def measure(engines, what, arguments):
    """Measure one thing in turns: a dict of results. Raises EngineError."""
    key, settings = best_setting(engines, what, arguments.llama_kv)
    mine = ("minimax2",)
    own_settings = {"chunk": arguments.chunk, "kv_dtype": arguments.kv_dtype}
    own, peer = engines[mine].facts, engines[key].facts
    ours, theirs = [], []
    for turn in tqdm(range(-1, arguments.repeat), desc=what.name, leave=False, disable=None):
        a = engines.run(mine, what, **own_settings)
        b = engines.run(key, what, **settings)
        if turn < 0:  # warm-up
            continue
        ours.append(a["seconds"])
        theirs.append(b["seconds"])
    if correlation_of(a, b) < ALIKE:
        raise EngineError(f"the logits of the engines correlate by {correlation_of(a, b):.2f} "
                          f"only, expected {ALIKE}: they did not do the same work")
    cache = f"{arguments.kv_dtype}/{arguments.llama_kv}"
    kind = "" if cache == "bf16/f16" else f", {cache}"
    return {"what": what.name + kind,
            "ours": Speed.of(what.tokens, ours),
            "theirs": Speed.of(what.tokens, theirs),
            "ratio": statistics.median(theirs) / statistics.median(ours),
            "memory": f"{a['peak'] / 1e9:.1f} / {b['peak'] / 1e9:.1f}",
            "setting": named(key, settings) + ("" if engines.together else ", reloaded each time"),
            "features": " ".join(re.findall(r"(\w+) = 1", peer["features"])),
            "version": f"{peer['version']} {widest(peer['features'])}", "facts": own}


def widest(features):
    """The widest vectors that llama.cpp was built with."""
    return next((f"({name})" for name in ("AVX512", "AVX2", "NEON")
                 if f"{name} = 1" in features), "")


# ---- The run ----

def commit():
    """Short hash of the last commit to the core or the package; + if they differ from it."""
    if not shutil.which("git"):
        return "unknown"

    def git(*words):
        return subprocess.run(["git", *words, "--", ":/csrc", ":/python"], cwd=HERE,
                              capture_output=True, text=True)
    name = git("log", "-1", "--format=%h").stdout.strip() or "unknown"
    return name + ("+" if git("diff", "--quiet", "HEAD").returncode else "")


def available_memory():
    """Bytes that could be had without swapping."""
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    return int(re.search(r"MemAvailable:\s*(\d+)", text)[1]) * 1024


def compare_file(path, label, arguments):
    """Compare on one file: a list of result dicts. What fails is reported and left out.

    Pages of the mapped file are shared, a repacked copy is not: both must fit for all engines to
    stay open.
    """
    with mm.load(path) as model:
        size = model.nbytes
    together = available_memory() > 2 * size + SPARE
    print(f"{label}: {size / 1e9:.2f} GB" + ("" if together else
          "; memory does not hold all engines, they are opened anew for every run"), flush=True)
    engines = Engines(path, arguments, together)
    rows = []
    try:
        for what in arguments.what:
            try:
                rows.append({"format": label} | measure(engines, what, arguments))
            except EngineError as error:
                print(f"  {what.name}: {error}", file=sys.stderr)
    finally:
        engines.close()
    return rows


def compare_format(format, arguments):
    """Compare on random weights in this format; the file is deleted again."""
    folder = Path(tempfile.mkdtemp(prefix="minimax2-compare-", dir=arguments.folder))
    try:
        path = folder / f"{format}.gguf"
        synth(path, format=format, layers=arguments.layers, vocab=arguments.vocab,
              experts=arguments.experts)
        return compare_file(path, format, arguments)
    finally:
        shutil.rmtree(folder)


def summary(rows):
    """The results as lines of text."""
    lines = [f"{'':24}{'minimax2':>14}{'llama.cpp':>14}   ratio  memory, GB   llama.cpp's best"]
    for row in rows:
        lines.append(f"{row['format']:<14}{row['what']:<10}{str(row['ours']):>14}"
                     f"{str(row['theirs']):>14}{row['ratio']:8.2f}  {row['memory']:<11}  "
                     f"{row['setting']}")
    return "\n".join(lines)


def record(rows, folder):
    """Append results to the table of this machine."""
    if not rows:
        return
    machine, date, revision = this_machine(), datetime.date.today().isoformat(), commit()
    head = HEAD.format(machine=machine, features=rows[-1]["features"])
    append_rows(folder / f"{machine}.md", head, COLUMNS, [
        (date, revision, row["format"], facts["layers"], facts["experts"], facts["vocabulary"],
         facts["threads"], facts["isa"], row["what"], row["ours"], row["theirs"],
         f"{row['version']}, {row['setting']}", f"{row['ratio']:.2f}", row["memory"])
        for row in rows for facts in [row["facts"]]])


def parse_arguments(argv):
    """The command line; `what` as a list of What, `format` as a list of names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-m", "--model", action="append", default=[], type=Path, metavar="FILE",
                        help="a .gguf file; may be given several times")
    parser.add_argument("--format", default="", metavar="NAMES",
                        help="formats of random files to make, such as q4_k_m,ud-iq3_s; those of "
                        "minimax2 synth in GGUF. Rules of mixes that are for the first eighth of "
                        "the layers need --layers 8")
    parser.add_argument("--layers", type=int, default=2, metavar="N",
                        help="of random files (2); few flatter llama.cpp at pp512, see pp512all")
    parser.add_argument("--vocab", type=int, default=2048, metavar="N",
                        help="of random files (2048, so that the layers count; M2 has 200064)")
    parser.add_argument("--experts", type=int, metavar="N", help="of random files (256)")
    parser.add_argument("--what", default="pp512,pp512all,tg32", metavar="NAMES",
                        help="pp512: a prompt; pp512all: the same, all its logits asked for, so "
                        "that llama.cpp too computes every row of its last layer; tg32: tokens one "
                        "by one; tg16@4096: behind 4096 others (pp512,pp512all,tg32)")
    parser.add_argument("--repeat", type=int, default=7, metavar="N", help="turns (7)")
    parser.add_argument("-t", "--threads", type=int, default=2, metavar="N", help="(2)")
    parser.add_argument("--isa", help="minimax2's: ref, avx2, avx512, amx, blas; default: best")
    parser.add_argument("--chunk", type=int, metavar="N", help="minimax2's; default: its own")
    parser.add_argument("--kv-dtype", default="bf16", metavar="NAME",
                        help="minimax2's cache (bf16)")
    parser.add_argument("--llama-kv", default="f16", metavar="NAME",
                        help="llama.cpp's cache: f16, bf16, q8_0 (f16)")
    parser.add_argument("--llama-python", default=sys.executable, metavar="PATH",
                        help="an interpreter that has llama-cpp-python; default: this one")
    parser.add_argument("--folder", metavar="PATH", help="for random files; default: the system's")
    parser.add_argument("--results", type=Path, default=HERE / "results", metavar="PATH",
                        help="folder of the tables")
    arguments = parser.parse_args(argv)
    try:
        arguments.what = [parse_what(text) for text in arguments.what.split(",")]
    except ValueError as error:
        parser.error(str(error))
    arguments.format = [name for name in arguments.format.split(",") if name]
    for name in arguments.format:
        if name not in FORMATS and name not in MIXES:
            parser.error(f"--format {name}: llama.cpp opens GGUF, in one of "
                         f"{', '.join([*FORMATS, *MIXES])}")
    if not arguments.format and not arguments.model:
        parser.error("nothing to compare on: give -m FILE or --format NAME")
    if arguments.repeat < 1:
        parser.error("--repeat must be at least 1")
    return arguments


def has_llama_cpp(python):
    """Does this interpreter have llama-cpp-python?"""
    return subprocess.run([python, "-c", "import llama_cpp"], capture_output=True).returncode == 0


def main(argv=None):
    """Compare, print, append; the exit code: 0, 1 if something could not be measured."""
    arguments = parse_arguments(argv)
    if not has_llama_cpp(arguments.llama_python):
        print(f"{arguments.llama_python} has no llama-cpp-python: pip install -r "
              "tests/bench/requirements.txt, or name one that has it with --llama-python",
              file=sys.stderr)
        return 1
    jobs = [(compare_file, path, path.stem) for path in arguments.model]
    jobs += [(compare_format, name) for name in arguments.format]
    rows = []
    for compare, *what in jobs:
        try:
            made = compare(*what, arguments)
        except (mm.Error, OSError) as error:
            print(f"{what[-1]}: {error}", file=sys.stderr)
            continue
        record(made, arguments.results)
        rows += made
    if rows:
        print(f"\n{rows[-1]['facts']['cpu']}; llama.cpp: {rows[-1]['features']}\n{summary(rows)}")
    return 0 if len(rows) == len(jobs) * len(arguments.what) else 1


if __name__ == "__main__":
    sys.exit(main())
