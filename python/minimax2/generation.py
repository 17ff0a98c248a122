"""Generation: what came out."""

from dataclasses import dataclass
from typing import NamedTuple

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

    @property
    def prompt_speed(self) -> float:
        """Prompt tokens a second."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def speed(self) -> float:
        """Generated tokens a second, after the first."""
        return (self.tokens - 1) / self.seconds if self.tokens > 1 and self.seconds else 0.0


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
    """"stop" (end token or stop string), "length", "context" (it is full) or "cancelled"."""
    seed: int
    """Gives the same again, with the same prompt and options."""
    logprobs: list[TokenLogprob] | None
    """TokenLogprob for each token, if top_logprobs was given."""
    timing: Timing

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= 40 else self.text[:40] + "..."
        return f"<Generation {len(self.tokens)} tokens, {self.finish_reason}: {text!r}>"

    def _repr_html_(self) -> str:
        return show.generation(self)
