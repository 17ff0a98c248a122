"""minimax2 runs MiniMax-M2 language models on CPUs.

    import minimax2 as mm

    model = mm.load()                  # or mm.load("MiniMax-M2.5"): a directory or a .gguf file
    for piece in model.generate("def fibonacci(n):", stream=True):
        print(piece, end="", flush=True)
    for tap in model.trace("The sum of 2 and 3 is", "resid_post"):
        print(tap.layer, tap.tensor[-1].std())
"""

from collections.abc import Iterable as _Iterable
from collections.abc import Sequence as _Sequence
from typing import Any as _Any
from typing import Unpack as _Unpack

from minimax2 import _native_text
from minimax2._native import VERSION as __version__
from minimax2._native import cpu
from minimax2.batching import Batch, Streams
from minimax2.conversation import Chat
from minimax2.edits import Edits
from minimax2.engine import Engine, Job
from minimax2.errors import (ArgumentError, BusyError, ContextFull, Error, FileError, FormatError,
                             NumericError, OutOfMemory, UnsupportedError)
from minimax2.generation import Generation, Piece, ToolCall
from minimax2.model import (AttentionLimits, Config, Cost, Limits, Model, PrefixStats, WeightInfo,
                            load)
from minimax2.options import AnyPath as _AnyPath
from minimax2.options import Message as _Message
from minimax2.options import ModelGenerateOptions as _ModelGenerateOptions
from minimax2.options import spelled_out as _spelled_out
from minimax2.plan import Plan
from minimax2.sampling import Sampler
from minimax2.scoring import Score
from minimax2.session import Session
from minimax2.stream import Stream
from minimax2.survey import Info, info
from minimax2.tensor import Tensor
from minimax2.text import Tokenizer
from minimax2.tools import Tool
from minimax2.trace import Cache, Tap, Taps


def tokenizer(path: _AnyPath) -> Tokenizer:
    """A Tokenizer alone, from a tokenizer.json, a directory that holds one, or a GGUF file."""
    return Tokenizer(path)


def batch(model: Model, sessions: _Iterable[Session] = ()) -> Batch:
    """A Batch of sessions of a model that are advanced together."""
    return model.batch(sessions)


@_spelled_out(_ModelGenerateOptions)
def chat(model: Model, system: str | None = None, *,
         messages: _Sequence[_Message] | None = None,
         **options: _Unpack[_ModelGenerateOptions]) -> Chat:
    """A Chat with a model; options as in Model.chat()."""
    return model.chat(system, messages=messages, **options)


def export_messages(messages: _Sequence[_Message], form: str) -> list[dict[str, _Any]]:
    """Messages, in any form that generate() takes, in that of others.

    form: "openai", its chat interface, thinking as reasoning_content; or "anthropic", whose system
    text stands apart: here it is the first message. Calls get ids, and results those of their
    calls.
    """
    return _native_text.chat_export(messages, form)


__all__ = [
    "ArgumentError", "AttentionLimits", "Batch", "BusyError", "Cache", "Chat", "Config",
    "ContextFull", "Cost", "Edits", "Engine", "Error", "FileError", "FormatError", "Generation",
    "Info", "Job", "Limits", "Model", "NumericError", "OutOfMemory", "Piece", "Plan", "PrefixStats",
    "Sampler", "Score", "Session", "Stream", "Streams", "Tap", "Taps", "Tensor", "Tokenizer",
    "Tool", "ToolCall", "UnsupportedError", "WeightInfo", "__version__", "batch", "chat", "cpu",
    "export_messages", "info", "load", "tokenizer",
]
