"""Scores: how likely a text is, token by token."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from minimax2 import trace
from minimax2.errors import NumericError
from minimax2.tensor import Tensor

CHUNK = 64  # tokens whose logits are in memory together, where one text is scored alone


class Score(NamedTuple):
    """The tokens of a text and how likely the model finds them."""

    tokens: list[int]
    """The ids of the text."""
    logprobs: list[float]
    """Natural-log probabilities of tokens[1:], each behind all before it: one fewer than tokens."""

    @property
    def total(self) -> float:
        """The log-probability of the text behind its first token."""
        return math.fsum(self.logprobs)


class Scoring:
    """A hook at the logits that keeps one number of each row, whatever the text's length."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = list(ids)
        self._logprobs = [math.nan] * (len(self._ids) - 1)

    def __call__(self, tensor: Tensor, tap: trace.Tap) -> None:
        """Score the tokens that follow these rows, f32 [rows, vocab_size]."""
        import numpy

        rows = tensor.numpy()
        for row, position in zip(rows, tap.positions):
            if position >= len(self._logprobs):
                return
            values = row.astype(numpy.float64)
            best = values.max()
            if not math.isfinite(best):
                raise NumericError(f"the logits at position {position} hold NaN or infinity: "
                                   "nothing can be scored by them")
            total = math.log(numpy.exp(values - best).sum())
            self._logprobs[position] = float(values[self._ids[position + 1]] - best - total)

    def score(self) -> Score:
        """What was found."""
        return Score(self._ids, self._logprobs)
