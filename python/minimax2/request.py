"""Request: what one generation is asked for, checked before it begins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, SupportsFloat, Unpack

from minimax2 import _native, _native_text, trace
from minimax2.errors import ArgumentError
from minimax2.options import DEFAULTS, FORMS, GenerateOptions, Prompt, check_names
from minimax2.sampling import Sampler
from minimax2.text import is_messages

if TYPE_CHECKING:
    from minimax2.grammar import Constraint, Form
    from minimax2.model import Model


class Request:
    """The options of one generation, all of them checked, and the ids of its prompt.

    Made before anything is fed: what it refuses has changed nothing. turn: makes the ids of a chat
    turn, given whether it begins with thinking.
    """

    def __init__(self, model: Model, prompt: Prompt | None,
                 turn: Callable[[bool], list[int]] | None = None,
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
        self.speculate = _native.proposals(given.pop("speculate"))
        self.answers = turn is not None or is_messages(prompt)  # in the chat format
        self.thinking, self.budget = _native_text.thinks(thinking, self.answers)
        tools, keep = given.pop("tools", None), given.pop("keep_thinking")
        choice = given.pop("tool_choice", None)
        self.call = _wanted_call(choice, self.answers or prompt is None)
        if choice == "none":
            given["bias"] = _without_calls(model, given.get("bias"))
        form = _form(given)
        self.parser = None if form is None else form.parser
        self.tools = None if tools is None else _native_text.json_text(tools, "tools")
        keep = _native.flag(keep, "keep_thinking")
        if turn is not None:
            self.ids: list[int] | None = turn(self.thinking)
        elif is_messages(prompt):
            self.ids = model.tokenizer.apply_chat_template(
                prompt, tools=tools, thinking=self.thinking, keep_thinking=keep)
        elif tools is not None and prompt is not None:
            raise ArgumentError("tools are for prompts of messages; a prompt that is a text or ids "
                                "declares its own")
        else:
            self.ids = None if prompt is None else model.ids(prompt)
        if self.answers and self.ids is not None:
            self.thinking = model.tokenizer._begins_thinking(self.ids, self.thinking)
        self.sampler = Sampler(model, **given)
        self.constraint: Constraint | None = None
        if form is not None:
            made = model._grammars.constraint(form, self.start,
                                              tools is not None and choice != "none")
            if self.call is None:  # else the reply is that call
                self.constraint = made

    @property
    def start(self) -> int:
        """What stands before the first token, a number of the library."""
        if self.thinking:
            return _native_text.START_THINKING
        return _native_text.START_ANSWER if self.answers else _native_text.START_TEXT


def _form(given: dict[str, Any]) -> Form | None:
    """Takes the options out that say a form of the text."""
    wanted = {kind: given.pop(kind, None) for kind in FORMS}
    kinds = [kind for kind, value in wanted.items() if value is not None]
    if not kinds:
        return None
    if len(kinds) > 1:
        raise ArgumentError(f"{kinds[0]} and {kinds[1]} are both given: a text has one form")
    from minimax2.grammar import form_of  # not sooner: it needs numpy

    return form_of(kinds[0], wanted[kinds[0]])


def _wanted_call(choice: str | None, answers: bool) -> str | None:
    """The tool that must be called, "" for any; None: the model's choice."""
    if choice is None or choice in ("auto", "none"):
        return None
    if not isinstance(choice, str):
        raise TypeError("tool_choice must be 'auto', 'none', 'required' or the name of a tool, not "
                        f"{type(choice).__name__}")
    if not choice:
        raise ArgumentError("tool_choice must be 'auto', 'none', 'required' or the name of a tool, "
                            "not ''")
    if not answers:
        raise ArgumentError("tool_choice is for prompts of messages")
    return "" if choice == "required" else choice


def _without_calls(model: Model, bias: Mapping[int, SupportsFloat] | None) -> dict[int, Any]:
    """A bias that forbids the token which begins calls."""
    token = model.tokenizer.id("<minimax:tool_call>")
    return {**(bias or {}), **({} if token is None else {token: float("-inf")})}


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
