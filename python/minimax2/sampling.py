"""Sampler: from logits to a token."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, SupportsFloat, Unpack

from minimax2 import _native
from minimax2._native import Buffer
from minimax2.handle import Handle
from minimax2.options import Ids, SamplingOptions, check_names, spelled_out

if TYPE_CHECKING:
    from minimax2.model import Model
    from minimax2.session import Session


def fresh_seed() -> int:
    """32 random bits: enough to tell runs apart, few enough to type in again."""
    return int.from_bytes(os.urandom(4), "little")


class Sampler(Handle):
    """Chooses tokens. The draw depends on seed, position and logits only.

    Options, each at the checkpoint's default unless given, applied in this order:

    - mask (an argument of next and pick), `bias` {id: value added, -inf forbids}
    - `repetition_penalty` (1: off), `presence_penalty`, `frequency_penalty` (0: off), over the last
      `penalty_window` tokens (-1: all)
    - DRY: `dry_multiplier` (0: off), `dry_base`, `dry_allowed_length`, `dry_window`, `breakers`
      (ids that end a repetition)
    - `temperature` (0: greedy, the best token), `top_k` (0: off), `top_p` (1: off), `min_p`
      (0: off), `typical_p` (1: off), `top_n_sigma` (0: off)
    - `seed`: None draws a fresh one, kept in `options["seed"]`

    Raises TypeError for an unknown option, ArgumentError for a value out of range. Used by one
    thread at a time.
    """

    __slots__ = ("_vocab_size", "options")

    @spelled_out(SamplingOptions)
    def __init__(self, model: Model, **options: Unpack[SamplingOptions]) -> None:
        check_names(options, SamplingOptions)
        given = {name: value for name, value in options.items() if value is not None}
        bias, breakers = given.pop("bias", None), given.pop("breakers", None)
        given.setdefault("seed", fresh_seed())
        fields = _native.sampling(model._c, given)
        super().__init__(_native.sampler_new(model._c, fields))
        self._vocab_size = model.config.vocab_size
        self.options = _native.sampling_values(fields)
        if bias is not None:
            _native.sampler_bias(self._c, bias)
        if breakers is not None:
            _native.sampler_breakers(self._c, breakers)

    @property
    def seed(self) -> int:
        """Its seed: the one that was given, or the fresh one."""
        return int(self.options["seed"])

    def bias(self, values: Mapping[int, SupportsFloat]) -> None:
        """Replace the biases by {id: value}; {} clears them."""
        _native.sampler_bias(self._c, values)

    def breakers(self, ids: Ids) -> None:
        """Replace the ids that end a DRY repetition."""
        _native.sampler_breakers(self._c, ids)

    def next(self, session: Session, mask: Buffer | None = None) -> int:
        """The id of the token that follows a session's last one; does not feed it.

        mask: None, or a buffer of (vocab_size + 31) // 32 32-bit words, where bit i % 32 of word
        i // 32 allows token i. Raises NumericError for NaN logits or if nothing is left to choose.
        """
        return _native.sampler_next(self._c, session._c, mask, self._vocab_size)

    def pick(self, logits: Buffer, history: Ids = (), mask: Buffer | None = None) -> int:
        """The same for any float32 [vocab_size] buffer; `history`: the ids before it."""
        return _native.sampler_pick(self._c, logits, history, mask, self._vocab_size)

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value:.6g}" if isinstance(value, float) else f"{name}={value}"
                            for name, value in self.options.items()
                            if name in ("temperature", "top_k", "top_p", "min_p", "seed"))
        return f"<Sampler {options}>"
