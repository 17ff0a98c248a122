"""minimax2 runs MiniMax-M2 language models on CPUs.

    import minimax2 as mm

    model = mm.load()                  # or mm.load("MiniMax-M2.5"): a directory or a .gguf file
    for piece in model.generate("def fibonacci(n):", stream=True):
        print(piece, end="", flush=True)
    for tap in model.trace("The sum of 2 and 3 is", "resid_post"):
        print(tap.layer, tap.tensor[-1].std())
"""

from minimax2._native import VERSION as __version__
from minimax2._native import cpu
from minimax2.batch import Batch
from minimax2.chat import Chat
from minimax2.errors import (ArgumentError, BusyError, ContextFull, Error, FileError, FormatError,
                             NumericError, OutOfMemory, UnsupportedError)
from minimax2.generation import Generation
from minimax2.model import Config, Cost, Limits, Model, load
from minimax2.sampling import Sampler
from minimax2.session import Session
from minimax2.stream import Stream
from minimax2.tensor import Tensor
from minimax2.tokenizer import Tokenizer
from minimax2.trace import Cache, Tap

__all__ = [
    "ArgumentError", "Batch", "BusyError", "Cache", "Chat", "Config", "ContextFull", "Cost",
    "Error", "FileError", "FormatError", "Generation", "Limits", "Model", "NumericError",
    "OutOfMemory", "Sampler", "Session", "Stream", "Tap", "Tensor", "Tokenizer",
    "UnsupportedError", "__version__", "cpu", "load",
]
