"""Sampler: from logits to a token."""

import os

from minimax2 import _native
from minimax2.handle import Handle


def fresh_seed():
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

    def __init__(self, model, *, seed=None, bias=None, breakers=None, **options):
        options["seed"] = fresh_seed() if seed is None else _native.integer(
            seed, "seed", 0, 2**64 - 1)
        fields = _native.sampling(model._c, options)
        super().__init__(_native.sampler_new(model._c, fields))
        self._vocab_size = model.config.vocab_size
        self.options = _native.sampling_values(fields)
        if bias is not None:
            self.bias(bias)
        if breakers is not None:
            self.breakers(breakers)

    def bias(self, values):
        """Replace the biases by {id: value}; {} clears them."""
        _native.sampler_bias(self._c, values)

    def breakers(self, ids):
        """Replace the ids that end a DRY repetition."""
        _native.sampler_breakers(self._c, ids)

    def next(self, session, mask=None):
        """The id of the token that follows a session's last one; does not feed it.

        mask: None, or a buffer of (vocab_size + 31) // 32 32-bit words, where bit i % 32 of word
        i // 32 allows token i. Raises NumericError for NaN logits or if nothing is left to choose.
        """
        return _native.sampler_next(self._c, session._c, mask, self._vocab_size)

    def pick(self, logits, history=(), mask=None):
        """The same for any float32 [vocab_size] buffer; `history`: the ids before it."""
        return _native.sampler_pick(self._c, logits, history, mask, self._vocab_size)

    def __repr__(self):
        options = ", ".join(f"{name}={value:.6g}" if isinstance(value, float) else f"{name}={value}"
                            for name, value in self.options.items()
                            if name in ("temperature", "top_k", "top_p", "min_p", "seed"))
        return f"<Sampler {options}>"
