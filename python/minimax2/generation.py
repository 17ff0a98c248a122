"""Generation: what came out."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from minimax2 import show


class TokenLogprob(NamedTuple):
    """One token's natural-log probability by the model's own logits."""

    id: int
    logprob: float
    top: list[tuple[int, float]]
    """The likeliest tokens at this place: (id, log probability), best first."""


@dataclass(frozen=True)
class Timing:
    """Where the time went, in seconds."""

    prompt_tokens: int
    prompt_seconds: float
    tokens: int
    seconds: float
    proposed: int = 0
    """Tokens that were evaluated before they were chosen, see the option speculate."""
    accepted: int = 0
    """How many of these were chosen then, and took no run of their own."""
    speculating: bool = False
    """False: not asked for, or nothing is proposed because it is expected to lose."""

    @property
    def prompt_speed(self) -> float:
        """Prompt tokens a second."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def speed(self) -> float:
        """Generated tokens a second, after the first."""
        return (self.tokens - 1) / self.seconds if self.tokens > 1 and self.seconds else 0.0


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool, as far as it came."""

    name: str
    json: str
    """The arguments as JSON of an object. It only grows; whole unless the state is "open"."""
    state: str
    """"open" while its arguments are coming, "complete", or "cut": the reply ended inside it."""
    known: bool
    """False: tools were given, and none of that name."""
    at: int
    """Characters of the text before it."""

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments, typed by the tool's schema where that can be; {} while it is open."""
        found: dict[str, Any] = {} if self.state == "open" else json.loads(self.json)
        return found

    def message(self) -> dict[str, Any]:
        """What stands for it in the tool_calls of an assistant's message."""
        return {"type": "function", "function": {"name": self.name, "arguments": self.arguments}}


class Piece(NamedTuple):
    """A piece of a reply, of Stream.pieces()."""

    kind: str
    """"thinking", "text", "call" (it begins: its name), "arguments" (JSON that joins up to the
    object) or "call_end"; of Chat.pieces() also "result" (what the tool has answered)."""
    text: str
    call: int | None
    """Which call of its reply, from 0."""


def assistant_message(text: str, thinking: str | None, calls: list[ToolCall]) -> dict[str, Any]:
    """A turn of the assistant for a conversation."""
    message: dict[str, Any] = {"role": "assistant", "content": text, "thinking": thinking}
    if calls:
        message["tool_calls"] = [call.message() for call in calls]
    return message


@dataclass(frozen=True)
class Generation:
    """A finished generation. `str()` of it is the text."""

    text: str
    """What was written, cut before a stop string; of a chat turn, the answer alone."""
    thinking: str | None
    """What stood before </think> in a chat turn; None outside chats."""
    tokens: list[int]
    """All ids sampled, in order, an end token included: what the timeline holds."""
    finish_reason: str
    """"stop" (end token or stop string), "tool_calls" (an end token, and it calls tools), "length",
    "context" (it is full) or "cancelled"."""
    seed: int
    """Gives the same again, with the same prompt and options."""
    logprobs: list[TokenLogprob] | None
    """TokenLogprob for each token, if top_logprobs was given."""
    timing: Timing
    calls: list[ToolCall] = field(default_factory=list)
    """Calls of tools in a chat turn, in order."""
    thinking_tokens: int = 0
    """How many of the tokens are thinking, its end included."""
    reason: str = ""
    """Why the last text that looks like a call is none; "" where there is no such text."""

    _parser: Callable[[str], Any] | None = field(default=None, repr=False, compare=False)

    @property
    def parsed(self) -> Any:
        """What a text in the form of json_schema says: a value as of json.loads(), or an object of
        the pydantic model. None without a schema, and where the text is not whole: it was cut, or
        calls of tools stand in its place. Raises what the model's own validators raise."""
        if self._parser is None or self.calls or self.finish_reason != "stop":
            return None
        try:
            json.loads(self.text)
        except ValueError:  # a stop string has cut it
            return None
        return self._parser(self.text)

    def message(self) -> dict[str, Any]:
        """The assistant's message for a conversation: role, content, thinking, tool_calls."""
        return assistant_message(self.text, self.thinking, self.calls)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= 40 else self.text[:40] + "..."
        return f"<Generation {len(self.tokens)} tokens, {self.finish_reason}: {text!r}>"

    def _repr_html_(self) -> str:
        return show.generation(self)
