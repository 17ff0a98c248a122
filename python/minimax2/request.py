"""Request: what one generation is asked for, checked before it begins."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Unpack

from minimax2 import _native, trace
from minimax2.errors import ArgumentError
from minimax2.options import DEFAULTS, GenerateOptions, Prompt, check_names
from minimax2.sampling import Sampler
from minimax2.text import Tokenizer, is_messages

if TYPE_CHECKING:
    from minimax2.model import Model


class Request:
    """The options of one generation, all of them checked, and the ids of its prompt.

    Made before anything is fed: what it refuses has changed nothing. chat: the prompt's ids open a
    turn of the chat format.
    """

    def __init__(self, model: Model, prompt: Prompt | None, chat: bool = False,
                 **options: Unpack[GenerateOptions]) -> None:
        check_names(options, GenerateOptions)
        given: dict[str, Any] = {**DEFAULTS, **options}
        self.max_new_tokens = _native.integer(given.pop("max_new_tokens"), "max_new_tokens", 0)
        self.top_logprobs = _native.integer(given.pop("top_logprobs"), "top_logprobs", 0,
                                            model.config.vocab_size)
        self.stop = _stop_strings(given.pop("stop", None))
        self.mask = given.pop("mask", None)
        if self.mask is not None and not callable(self.mask):
            _native.mask_words(self.mask, model.config.vocab_size)
        self.logits_processor = given.pop("logits_processor", None)
        if self.logits_processor is not None and not callable(self.logits_processor):
            raise TypeError("logits_processor must be a callable(ids, logits), not "
                            f"{type(self.logits_processor).__name__}")
        hooks, thinking = given.pop("hooks", None), given.pop("thinking", None)
        self.hooks = None if hooks is None else trace.Hooks(model, hooks)
        self.ids = None if prompt is None else model.ids(prompt)
        self.answers = chat or is_messages(prompt)  # in the chat format
        self.thinking = (
            self.answers if thinking is None else _native.flag(thinking, "thinking"))
        if self.ids is not None and self.answers and not self.thinking:
            self.ids = without_thinking(model.tokenizer, self.ids)
        self.sampler = Sampler(model, **given)

    @property
    def start(self) -> int:
        """What stands before the first token, a number of the library."""
        if self.thinking:
            return _native.START_THINKING
        return _native.START_ANSWER if self.answers else _native.START_TEXT


def without_thinking(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """A chat prompt, which ends inside <think>, with that block closed and empty."""
    if tokenizer.think_open is None or tokenizer.think_close is None:
        raise ArgumentError("thinking=False needs a tokenizer with <think> and </think>")
    opened = len(ids) - 1 - ids[::-1].index(tokenizer.think_open)
    blank = tokenizer.encode("\n\n")
    return [*ids[:opened + 1], *blank, tokenizer.think_close, *blank]


def _stop_strings(stop: str | Iterable[str] | None) -> list[str]:
    if stop is None:
        return []
    if not isinstance(stop, str) and not hasattr(stop, "__iter__"):
        raise TypeError(f"stop must be a str, several, or None, not {type(stop).__name__}")
    strings = [stop] if isinstance(stop, str) else list(stop)
    for string in strings:
        if not isinstance(string, str):
            raise TypeError(f"a string of stop must be a str, not {type(string).__name__}")
        if not string:
            raise ArgumentError("a string of stop is empty")
    return strings
