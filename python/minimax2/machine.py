"""What a machine gives a model: measured, read from a report, or described in a few numbers."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from minimax2 import _native
from minimax2.errors import ArgumentError, FormatError

if TYPE_CHECKING:
    from minimax2.model import Limits

PEAKS = ("int8", "bf16", "f32")
UNITS = {"read": 1e9, "ram": 1e9, "int8": 1e12, "bf16": 1e12, "f32": 1e12, "cores": 1}

HELP = """\
A machine is a JSON file that `minimax2 bench --report` has written, or KEY=NUMBER pairs: read (GB/s
of memory, of all threads together), and cores, or int8, bf16 and f32 (TOP/s, 2 a multiply-add);
what is missing of these is taken from this machine's threads, as many as there are cores. ram (GB)
and name may be added:
  --machine cores=16,read=200,ram=128
  --machine "name=server cores=64 read=300 int8=30 bf16=15 ram=512\""""


class Machine(NamedTuple):
    """What a prediction needs of a machine."""

    name: str
    read: float
    """Bytes of memory read per second."""
    int8: float
    """Operations per second; so the next two."""
    bf16: float
    f32: float
    memory: float | None = None
    """Bytes; None: not known."""
    attention: Mapping[str, Mapping[str, float]] = {}
    """By kv_dtype: {"read": bytes of cache per second, "ops": operations per second}."""
    shares: Mapping[str, Mapping[str, float]] = {}
    """By type of weights: {"decode", "prefill"}, shares of the roof that were reached there."""

    @classmethod
    def here(cls, limits: Limits) -> Machine:
        """This machine."""
        return cls("this machine", limits.best_read, limits.int8_ops, limits.bf16_ops,
                   limits.f32_ops, _native.memory()[0])

    @classmethod
    def described(cls, facts: Mapping[str, Any], here: Machine, threads: int) -> Machine:
        """A machine by the facts of parse_machine(); `here` has `threads` of its cores."""
        if "cores" not in facts:
            times = facts["int8"] / here.int8
        else:
            times = facts["cores"] / threads
        given = {key: facts.get(key) or getattr(here, key) * times for key in PEAKS}
        attention = facts.get("attention") or {
            name: {"read": rates["read"] * min(facts["read"] / here.read, times),
                   "ops": rates["ops"] * times} for name, rates in here.attention.items()}
        return cls(facts["name"], facts["read"], memory=facts.get("ram"), attention=attention,
                   shares=facts.get("shares") or here.shares, **given)


def parse_machine(text: str) -> dict[str, Any]:
    """The facts of a --machine description: name, and in bytes and operations (per second) read,
    ram, cores, int8, bf16, f32; of a file also attention and shares. Raises ArgumentError,
    FormatError, OSError."""
    if not isinstance(text, str):
        raise TypeError(f"the machine must be a str, not {type(text).__name__}")
    if text.endswith(".json"):
        return _of_report(Path(text))
    facts: dict[str, Any] = {"name": text}
    try:
        lexer = shlex.shlex(text, posix=True)
        lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t\n,", True, ""
        words = list(lexer)
    except ValueError as error:
        raise ArgumentError(f"--machine {text!r} cannot be read: {error}") from None
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key != "name" and key not in UNITS:
            raise ArgumentError(f"--machine: {word!r} is none of name=, {'=, '.join(UNITS)}=, and "
                                "no .json file")
        if key == "name":
            facts[key] = value
            continue
        try:
            facts[key] = float(value) * UNITS[key]
        except ValueError:
            raise ArgumentError(f"--machine: {key} is {value!r}, must be a number such as "
                                "200") from None
        if not 0 < facts[key] < math.inf:
            raise ArgumentError(f"--machine: {key} is {value}, must be above 0 and finite")
    if "read" not in facts:
        raise ArgumentError(f"--machine {text!r} needs read=, in GB per second")
    missing = [key for key in PEAKS if key not in facts]
    if missing and "cores" not in facts:
        raise ArgumentError(f"--machine {text!r} needs cores=, or {'=, '.join(missing)}= in TOP/s")
    return facts


def _of_report(path: Path) -> dict[str, Any]:
    """The "machine" of a report's JSON, whose numbers are checked."""
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["machine"]
        numbers = [facts[key] for key in ("read", *PEAKS)]
        numbers += [facts[key] for key in ("cores", "ram") if facts.get(key) is not None]
        numbers += [rates[key] for rates in facts["attention"].values() for key in ("read", "ops")]
        numbers += [share[key] for share in facts["shares"].values()
                    for key in ("decode", "prefill")]
        if not all(0 < number < math.inf for number in numbers):
            raise ValueError("a number is not above 0 and finite")
        return {"ram": None, **facts, "name": str(facts["name"])}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FormatError(f"{path} is no report of `minimax2 bench --report`: {error!r}") from None
