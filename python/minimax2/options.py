"""The keyword options of generations and sessions, each named once.

A function that passes them on takes `**options: Unpack[...]`, which type checkers understand, and
is decorated with @spelled_out, which lists them in its signature for people: help(), completion.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, SupportsFloat, SupportsIndex, TypedDict, TypeVar

from minimax2._native import Buffer
from minimax2.edits import Edits
from minimax2.tools import Tool
from minimax2.trace import Hook, Where

AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Message = Mapping[str, Any]
Tools = Sequence[Mapping[str, Any] | Tool | Callable[..., Any]] | str
"""Functions, and JSON schemas of functions, {"type": "function", "function": {...}}; or JSON in a
str."""
Ids = Iterable[SupportsIndex]
Prompt = str | Ids | Sequence[Message]
"""A text, token ids, or messages: dicts of role and content."""
Item = Prompt | Mapping[str, Any]
"""One of several prompts; or a dict of `prompt` and options of its own."""
JsonSchema = Mapping[str, Any] | str | type[Any]
"""A dict, JSON in a str, or a pydantic model."""
KvDtype = Literal["bf16", "f32", "int8"]


class SessionOptions(TypedDict, total=False):
    """What a session is made with."""

    context: int | None
    kv_dtype: KvDtype | None
    chunk: int | None
    edits: Edits | None


class SamplingOptions(TypedDict, total=False):
    """What a Sampler is made with; None or absent: the checkpoint's default."""

    temperature: SupportsFloat | None
    top_k: int | None
    top_p: SupportsFloat | None
    min_p: SupportsFloat | None
    typical_p: SupportsFloat | None
    top_n_sigma: SupportsFloat | None
    repetition_penalty: SupportsFloat | None
    presence_penalty: SupportsFloat | None
    frequency_penalty: SupportsFloat | None
    penalty_window: int | None
    dry_multiplier: SupportsFloat | None
    dry_base: SupportsFloat | None
    dry_allowed_length: int | None
    dry_window: int | None
    breakers: Ids | None
    bias: Mapping[int, SupportsFloat] | None
    seed: int | None


class ReplyOptions(TypedDict, total=False):
    """Where a text ends, and what takes part in it."""

    max_new_tokens: int
    stop: str | Iterable[str] | None
    thinking: bool | int | None
    keep_thinking: bool
    tools: Tools | None
    tool_choice: str | None
    json_schema: JsonSchema | None
    regex: str | None
    grammar: str | None
    choices: Iterable[str] | None
    mask: Buffer | Callable[[list[int]], Buffer | None] | None
    logits_processor: Callable[[list[int], Any], None] | None
    top_logprobs: int
    hooks: Iterable[tuple[Where, Hook]] | None
    speculate: bool | int


class GenerateOptions(ReplyOptions, SamplingOptions, total=False):
    """What a generation is made with."""


class ModelGenerateOptions(GenerateOptions, SessionOptions, total=False):
    """What a generation with a session of its own is made with."""


# Of these that say the form of a text, one at most.
FORMS = ("json_schema", "regex", "grammar", "choices")
# Those that are not None.
DEFAULTS = {"max_new_tokens": 1024, "top_logprobs": 0, "keep_thinking": False,
            "speculate": False}

_Function = TypeVar("_Function", bound=Callable[..., Any])


def spelled_out(options: type) -> Callable[[_Function], _Function]:
    """Show the fields of a TypedDict in a function's signature, instead of its **options."""
    def decorate(function: _Function) -> _Function:
        signature = inspect.signature(function)
        shown = [parameter for parameter in signature.parameters.values()
                 if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
        shown += [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY,
                                    default=DEFAULTS.get(name),
                                    annotation=getattr(annotation, "__forward_arg__", annotation))
                  for name, annotation in inspect.get_annotations(options).items()]
        function.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
        return function
    return decorate


def check_names(given: Iterable[str], known: type) -> None:
    """TypeError for an option that a TypedDict does not name; says which it may have been."""
    names = list(inspect.get_annotations(known))
    for name in given:
        if name not in names:
            close = get_close_matches(name, names, 1, 0.6)
            if not close:
                close = [word for word in names if set(name.split("_")) <= set(word.split("_"))][:1]
            hint = f": did you mean {close[0]}? There" if close else "; there"
            raise TypeError(f"no option is called {name!r}{hint} are {', '.join(names)}")
