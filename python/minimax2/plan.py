"""What sessions would take, of memory and of time, before anything is allocated.

The library counts the bytes. Times are those of a roof: of reading the weights and multiplying
with them, what takes longer on the machine, over the share of it that this model was seen to reach,
for one row and for many; and attention to each position before. Both shares are measured here in
two seconds, on the model's own first layers, which are evaluated and dropped.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from minimax2 import _native, machine, show
from minimax2.errors import ArgumentError
from minimax2.machine import Machine

if TYPE_CHECKING:
    from minimax2.model import Cost, Model
    from minimax2.session import Session

DEPTHS = (0, 4096, 16384, 65536)
ENOUGH = 1.5e9  # bytes of weights that no cache holds
ROWS = 1024  # of a prompt, to measure with
PATIENCE = 8.0  # seconds to wait for the disk, before the measurement is given up
TYPICAL = {"decode": 0.75, "prefill": 0.1}  # shares where none could be measured
LAYER_END = _native.POINTS.index("resid_post")
CACHED = 512 << 20  # bytes of a model that caches may hold in good part
# Predictions are off by so much at most, by what they stand on.
SURE = {"measured": 0.15, "report": 0.25, "described": 0.4, "cached": 0.5, "limits": 0.5}


def whole(layers: Cost, rest: Cost, times: float = 1.0) -> Cost:
    """The Cost of a model with `times` as many layers."""
    return type(layers)(*(times * a + b for a, b in zip(layers, rest)))


def compute_seconds(cost: Cost, peaks: Machine) -> float:
    """How long the operations of a Cost take at a Machine's peaks."""
    return cost.int8_ops / peaks.int8 + cost.bf16_ops / peaks.bf16 + cost.f32_ops / peaks.f32


class Shape:
    """What tokens of a model take, apart: weights, and attention to a position."""

    def __init__(self, model: Model, kv_dtype: Any) -> None:
        self.model, self.kv_dtype = model, kv_dtype
        self.layers = model.config.num_hidden_layers
        (none, _), (one, _) = model.cost(1, 0, kv_dtype), model.cost(1, 1, kv_dtype)
        self.position_bytes = one.kv_bytes
        self.pair = type(one)(*(b - a for a, b in zip(none, one)))
        """The Cost of a token's attention to one position, of all layers."""

    def roof(self, rows: int, peaks: Machine, layers: float | None = None) -> float:
        """Seconds that `rows` tokens in one pass take at least, without attention.

        layers: of so many, and nothing of the rest; None: of all, and the head.
        """
        of_layers, rest = self.model.cost(rows, 0, self.kv_dtype)
        pairs = rows * (rows + 1) / 2
        of_layers = type(of_layers)(*(a - pairs * b for a, b in zip(of_layers, self.pair)))
        if layers is None:
            cost = whole(of_layers, rest)
        else:
            cost = type(rest)(*(a * layers / self.layers for a in of_layers))
        return max(cost.weight_bytes / peaks.read, compute_seconds(cost, peaks))

    def attention(self, pairs: float, rates: Mapping[str, float]) -> float:
        """Seconds of attention of rows of a prompt."""
        return pairs * self.pair.ops / rates["ops"]


class Speed(NamedTuple):
    """How fast a model is on a machine: what predictions are made of."""

    machine: Machine
    basis: str
    """Of SURE."""
    decode: float
    """Share of the roof with one row."""
    prefill: float
    """Likewise with `rows` rows."""
    rows: int
    rates: Mapping[str, float]
    """Of attention: "read" and "ops"."""

    def share(self, rows: int) -> float:
        """Of the roof, with so many rows: between the two that are known, by the logarithm."""
        at = min(1.0, math.log(rows) / math.log(max(2, self.rows)))
        return math.exp((1 - at) * math.log(self.decode) + at * math.log(self.prefill))

    def token(self, shape: Shape, depth: int, sessions: int = 1) -> float:
        """Seconds for one token of each session, behind `depth` positions each."""
        cache = sessions * depth * shape.position_bytes / self.rates["read"]
        return shape.roof(sessions, self.machine) / self.share(sessions) + cache

    def prompt(self, shape: Shape, tokens: int, chunk: int) -> float:
        """Seconds to the logits of a prompt's last token."""
        seconds = 0.0
        for first in range(0, tokens, chunk):
            rows = min(chunk, tokens - first)
            pairs = rows * first + rows * (rows + 1) / 2
            seconds += shape.roof(rows, self.machine) / self.share(rows)
            seconds += shape.attention(pairs, self.rates)
        return seconds


# ---- Measuring ----

class _TooSlow(Exception):
    """The weights come from the disk."""


def _layers_of(session: Session, ids: list[int], layers: int) -> float:
    """Seconds of the first `layers` layers for these tokens, which are dropped again.

    If there are no more layers, of the head too, and the tokens stay. Raises _TooSlow.
    """
    every = layers == session.model.config.num_hidden_layers
    session.feed(ids)
    if not every:
        _native.session_tap(session._c, LAYER_END, layers - 1, True)
    start = time.perf_counter()
    done = session.run(PATIENCE)
    taken = time.perf_counter() - start
    if not done:
        raise _TooSlow
    if not every:
        _native.session_tap(session._c, LAYER_END, layers - 1, False)
        session.rewind(0)
    return taken


def measure(model: Model, kv_dtype: Any = None, chunk: int | None = None) -> Speed:
    """The Speed of a model here, measured in about two seconds."""
    shape = Shape(model, kv_dtype)
    limits = model.limits()
    kv = _native.model_plan(model._c, 1, kv_dtype, None)["kv_dtype"]
    rates = model.attention_limits(kv_dtype)._asdict()
    here = Machine.here(limits)._replace(attention={kv: rates})
    rows = min(chunk or ROWS, ROWS, model.config.max_position_embeddings)
    try:
        decode, prefill = _shares(model, shape, here, rates, rows, kv_dtype)
    except _TooSlow:
        return Speed(here, "limits", TYPICAL["decode"], TYPICAL["prefill"], rows, rates)
    basis = "cached" if model.nbytes < CACHED else "measured"
    return Speed(here, basis, decode, prefill, rows, rates)


def _shares(model: Model, shape: Shape, here: Machine, rates: Mapping[str, float], rows: int,
            kv_dtype: Any) -> tuple[float, float]:
    """Shares of the roof that the first layers reach, with one row and with many."""
    vocabulary = model.config.vocab_size
    layer = model.cost(1, 0, kv_dtype)[0].weight_bytes / shape.layers
    layers = min(shape.layers, math.ceil(ENOUGH / layer))
    count = max(1, min(24, math.ceil(ENOUGH / (layer * layers)),
                       model.config.max_position_embeddings))
    ids = [7919 * i % vocabulary for i in range(rows)]
    words = [7919 * i % vocabulary for i in range(count)]
    room = min(max(rows, count), model.config.max_position_embeddings)
    with model.session(context=room, kv_dtype=kv_dtype, chunk=rows) as session:
        # Each twice and more: the first time brings the weights into memory and maps.
        best = 0.0
        for turn in range(3):
            session.rewind(0)
            taken = _layers_of(session, ids, 1)
            best = taken if turn < 2 else min(best, taken)
            if turn and taken > 1:
                break
        pairs = rows * (rows + 1) / 2 / shape.layers
        best -= shape.attention(pairs, rates)
        prefill = shape.roof(rows, here, None if shape.layers == 1 else 1) / max(best, 1e-9)
        turns = []
        for turn in range(4):
            session.rewind(0)
            turns.append(sum(_layers_of(session, [id], layers) for id in words))
    roof = count * shape.roof(1, here, None if layers == shape.layers else layers)
    return roof / median(turns[1:]), prefill


def elsewhere(model: Model, facts: Mapping[str, Any], here: Speed) -> Speed:
    """The Speed on a machine by the facts of parse_machine(), from that on this one."""
    made = Machine.described(facts, here.machine, model.threads)
    kind = (model.info("quantization") or "").split(",")[0]
    rates = made.attention.get(next(iter(here.machine.attention)), here.rates)
    known = made.shares.get(kind)
    if known:
        return Speed(made, "report", known["decode"], known["prefill"], ROWS, rates)
    basis = "limits" if here.basis == "limits" else "described"
    return Speed(made, basis, here.decode, here.prefill, here.rows, rates)


# ---- The plan ----

class Plan(dict[str, Any]):
    """What sessions would take: a dict that prints as a few lines.

        model, quantization, layers, isa, threads
        context, sessions, kv_dtype, chunk    as they would be made
        memory   bytes: weights; cache, of the whole contexts of all sessions; cache_page, of 256
                 positions of one; session, tokens and logits of all; buffers, of the rows in
                 flight; needed, all of it; present, of the machine or its control group;
                 available, of these now (null for another machine); fits, whether needed <=
                 present (null: not known)
        instead  list of sentences: what would fit
        machine  what was predicted for; null without predictions, as are the next three:
                 name, read, int8, bf16, f32, memory, attention, shares (of the roof: decode,
                 prefill), as in a report
        basis    "measured" (this model, here); "cached" (likewise, but it is so small that caches
                 hold it in part); "report"; "described"; or "limits", of the machine alone, since
                 the weights lie on a disk
        within   share that predictions are thought to be off by, at most
        depths   list of objects:
            depth                       positions before
            bytes                       that a token must read
            tokens_per_second           of one session that decodes there
            tokens_per_second_together  of all sessions, in one batch
            seconds_to_first_token      of a prompt of `depth` tokens; null for 0
    """

    def __str__(self) -> str:
        memory, many = self["memory"], self["sessions"]
        lines = [
            f"{self['model']}: {self['quantization']}, {self['layers']} layers; {self['isa']}, "
            f"{self['threads']} threads",
            f"{many} session{'s' * (many > 1)} of {self['context']:,} positions in "
            f"{self['kv_dtype']}, chunks of {self['chunk']:,}", ""]
        for name, note in (
                ("weights", ""), ("cache", f"grows by {show.size(memory['cache_page'])} for 256 "
                                           "positions of a session"),
                ("session", "tokens and logits"), ("buffers", "of the rows in flight")):
            lines.append(f"{name:>9} {show.size(memory[name]):>9}  {note}".rstrip())
        has = "" if memory["present"] is None else f"of {show.size(memory['present'])}"
        if memory["available"] is not None:
            has += f", {show.size(memory['available'])} available now"
        verdict = {True: ": fits", False: ": does not fit", None: ""}[memory["fits"]]
        lines.append(f"{'needed':>9} {show.size(memory['needed']):>9}  {has}{verdict}")
        lines += [f"          {sentence}" for sentence in self["instead"]]
        if self["depths"]:
            lines += ["", *self._speeds()]
        return "\n".join(lines)

    def _speeds(self) -> Iterator[str]:
        how = {"measured": "from this model's first layers, measured here",
               "cached": "for it is so small that caches hold it",
               "report": "from the shares in its report",
               "described": "from the numbers given and shares measured here",
               "limits": "from the machine's limits alone: the weights are on a disk"}
        yield (f"predicted for {self['machine']['name']}, within {self['within']:.0%}, "
               f"{how[self['basis']]}")
        together = self["sessions"] > 1
        yield (f"{'depth':>9} {'MB/token':>9} {'tokens/s':>9}" + " all sessions" * together
               + "   time to first token of such a prompt")
        for row in self["depths"]:
            first = row["seconds_to_first_token"]
            yield (f"{row['depth']:>9,} {row['bytes'] / 1e6:>9,.0f} "
                   f"{row['tokens_per_second']:>9,.1f}"
                   + f"{row['tokens_per_second_together']:>13,.1f}" * together
                   + ("" if first is None else f"   {seconds(first)}"))

    def _repr_html_(self) -> str:
        return "<pre>" + str(self).replace("&", "&amp;").replace("<", "&lt;") + "</pre>"


def seconds(number: float) -> str:
    """A duration as people write it."""
    if number < 60:
        return f"{number:.3g} s"
    minutes, rest = divmod(round(number), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def plan(model: Model, context: int | None = None, sessions: int = 1, kv_dtype: Any = None,
         chunk: int | None = None, *, depths: Iterable[int] | None = None,
         on: str | None = None, predict: bool = True, speed: Speed | None = None) -> Plan:
    """See Model.plan(). speed: measured before."""
    sessions = _native.positive(sessions, "sessions")
    facts = None if on is None else machine.parse_machine(on)
    found = _native.model_plan(model._c, context, kv_dtype, chunk)
    context, usual = found["context"], [*DEPTHS, found["context"]]
    wanted = sorted({depth for depth in usual if depth <= context} if depths is None
                    else {_native.integer(depth, "depth") for depth in depths})
    if wanted and not 0 <= wanted[0] <= wanted[-1] <= context:
        raise ArgumentError(f"depths must lie within 0 and the context of {context}, got {wanted}")
    made = Plan(
        model=str(model.path), quantization=model.info("quantization"),
        layers=model.config.num_hidden_layers, isa=model.info("isa"), threads=model.threads,
        sessions=sessions, memory=_memory(found, sessions), instead=[], machine=None, basis=None,
        within=None, depths=[], **{key: found[key] for key in ("context", "kv_dtype", "chunk")})
    if facts:
        memory = made["memory"]
        memory |= {"present": facts.get("ram"), "available": None}
        memory["fits"] = facts.get("ram") and memory["needed"] <= facts["ram"]
    made["instead"] = list(_instead(model, made))
    if predict:
        _predict(made, model, facts, wanted, speed or measure(model, kv_dtype, chunk))
    return made


def _memory(found: Mapping[str, Any], sessions: int) -> dict[str, Any]:
    memory = {"weights": found["weights"], "cache": sessions * found["cache"],
              "cache_page": found["cache_page"], "session": sessions * found["session"],
              "buffers": found["buffers"]}
    needed = sum(memory[key] for key in ("weights", "cache", "session", "buffers"))
    return memory | {"needed": needed, "present": found["present"],
                     "available": found["available"], "fits": needed <= found["present"]}


def _instead(model: Model, made: Plan) -> Iterator[str]:
    """Sentences about what would fit, if this does not."""
    memory, sessions = made["memory"], made["sessions"]
    if memory["fits"] is not False:
        return
    least = memory["needed"] - memory["cache"] + sessions * memory["cache_page"]
    if least > memory["present"]:
        room = memory["present"] - (least - memory["weights"])
        bits = 8 * memory["weights"] / model.parameters
        if room > 0:
            yield (f"these weights have {bits:.2f} bits each; a file of "
                   f"{bits * room / memory['weights']:.2f} bits a weight would fit, with a context "
                   "of 256")
        yield (f"a machine with {show.size(1.05 * memory['needed'])} would hold it; here experts "
               "would be read from the disk for nearly every token")
        return
    left = memory["present"] - (memory["needed"] - memory["cache"])
    most = model.config.max_position_embeddings
    for kind in dict.fromkeys((made["kv_dtype"], "bf16", "int8")):
        page = _native.model_plan(model._c, 1, kind, None)["cache_page"]
        positions = min(most, int(left // (sessions * page)) * 256)
        if positions > 0 and page <= memory["cache_page"]:
            yield f"a context of {positions:,} in {kind} would fit"
    own = (memory["cache"] + memory["session"]) // sessions
    fitting = int((memory["present"] - memory["weights"] - memory["buffers"]) // own)
    if 0 < fitting < sessions:
        yield f"{fitting} session{'s' * (fitting > 1)} of {made['context']:,} positions would fit"


def _predict(made: Plan, model: Model, facts: Mapping[str, Any] | None, depths: Iterable[int],
             here: Speed) -> None:
    speed = here if facts is None else elsewhere(model, facts, here)
    shape = Shape(model, made["kv_dtype"])
    weights = whole(*model.cost(1, 0, made["kv_dtype"])).weight_bytes
    shares = {"decode": speed.decode, "prefill": speed.prefill}
    made |= {"machine": speed.machine._asdict() | {"shares": shares}, "basis": speed.basis,
             "within": SURE[speed.basis]}
    many = made["sessions"]
    made["depths"] = [{
        "depth": depth, "bytes": weights + depth * shape.position_bytes,
        "tokens_per_second": 1 / speed.token(shape, depth),
        "tokens_per_second_together": many / speed.token(shape, depth, many),
        "seconds_to_first_token": speed.prompt(shape, depth, made["chunk"]) if depth else None}
        for depth in depths]


# ---- The command ----

def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `minimax2 plan`, onto an argparse parser."""
    parser.epilog = machine.HELP
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--context", type=int, metavar="N", help="positions; default: at most 8192")
    parser.add_argument("--sessions", type=int, default=1, metavar="N", help="(1)")
    parser.add_argument("--chunk", type=int, metavar="N",
                        help="prompt tokens that go through the layers together (1024)")
    parser.add_argument("--depth", type=int, action="append", metavar="N",
                        help="predict there; may be given several times")
    parser.add_argument("--machine", metavar="TEXT", help="plan for this machine; see below")
    parser.add_argument("--no-speed", action="store_true", help="bytes only, nothing is measured")
    parser.add_argument("--json", action="store_true",
                        help="print one JSON object; its keys are those of minimax2.Plan")


def run(model: Model, arguments: argparse.Namespace) -> None:
    """The command `minimax2 plan`."""
    made = plan(model, arguments.context, arguments.sessions, arguments.kv_dtype, arguments.chunk,
                depths=arguments.depth, on=arguments.machine, predict=not arguments.no_speed)
    print(json.dumps(made) if arguments.json else made)
