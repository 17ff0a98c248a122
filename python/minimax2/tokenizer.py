"""Tokenizer: text to ids and back, and the family's chat format."""

from minimax2 import _native
from minimax2.handle import Handle


class Tokenizer(Handle):
    """Byte-level BPE. Immutable, shared by any number of threads.

    A model has its own, `model.tokenizer`. Without a model: `Tokenizer(path)` of a tokenizer.json,
    a directory that holds one, or a GGUF file; raises FileError, FormatError, UnsupportedError.

    Ids of special tokens, None where the files name none: `bos`, `eos`, `unk`, `pad`, `think_open`,
    `think_close`. `vocab_size` is the highest id + 1.
    """

    __slots__ = ("_owner", "_facts")

    def __init__(self, path):
        self._adopt(_native.tokenizer_open(path), None)

    @classmethod
    def _of(cls, cdata, owner):
        """The tokenizer inside an open model; `owner` is the model's handle."""
        self = cls.__new__(cls)
        self._adopt(cdata, owner)
        return self

    def _adopt(self, cdata, owner):
        super().__init__(cdata)
        self._owner = owner
        self._facts = {name: None if value < 0 else value
                       for name, value in _native.tokenizer_facts(cdata).items()}

    vocab_size = property(lambda self: self._facts["vocab_size"], doc="The highest id + 1.")
    bos = property(lambda self: self._facts["bos"], doc="Id of the beginning of a text, or None.")
    eos = property(lambda self: self._facts["eos"], doc="Id that ends a turn, or None.")
    unk = property(lambda self: self._facts["unk"], doc="Id of the unknown token, or None.")
    pad = property(lambda self: self._facts["pad"], doc="Id that fills up batches, or None.")
    think_open = property(lambda self: self._facts["think_open"], doc="Id of <think>, or None.")
    think_close = property(lambda self: self._facts["think_close"], doc="Id of </think>, or None.")

    def encode(self, text, special=False):
        """The ids of a text, str or UTF-8 bytes, as a list of ints.

        special: let strings such as "[e~[" or "<think>" become their control token. By default they
        are plain text, so that what a user types cannot steer the format.
        """
        return _native.tokenizer_encode(self._c, text, special)

    def decode(self, ids, special=False):
        """The text of these ids. Bytes that are not UTF-8 become U+FFFD.

        special: write special tokens out instead of leaving them out. Raises ArgumentError for ids
        outside 0..vocab_size - 1.
        """
        return self.decode_bytes(ids, special).decode("utf-8", "replace")

    def decode_bytes(self, ids, special=False):
        """The same as bytes: a token may end in the middle of a character."""
        return _native.tokenizer_decode(self._c, ids, special)

    def token(self, id):
        """The bytes of one token. Raises ArgumentError for an id out of range."""
        return _native.tokenizer_token(self._c, id)

    def id(self, token):
        """The id of the token with exactly these bytes (or str), or None."""
        return _native.tokenizer_id(
            self._c, token.encode() if isinstance(token, str) else bytes(token))

    def render(self, messages, add_generation_prompt=True):
        """Messages, dicts of role, content and (assistant) thinking, as text in the chat format.

        For reading: to feed a model use apply_chat_template(), which keeps the format's tags and
        the same characters inside a message apart.
        """
        return _native.chat_render(self._c, messages, add_generation_prompt)

    def apply_chat_template(self, messages, add_generation_prompt=True, tokenize=True):
        """Messages as a list of ids, or with tokenize=False as text.

        Roles: "system" (first only), "user", "assistant". add_generation_prompt: end with the
        opening of an assistant turn, inside <think>. Raises ArgumentError for other roles.
        """
        if not tokenize:
            return self.render(messages, add_generation_prompt)
        return _native.chat_encode(self._c, messages, add_generation_prompt)

    def __len__(self):
        return self.vocab_size

    def __repr__(self):
        return f"<Tokenizer {self.vocab_size} tokens>"


def is_messages(prompt):
    """Whether a prompt is a conversation, a list of dicts, rather than text or ids."""
    return (isinstance(prompt, (list, tuple)) and bool(prompt)
            and all(isinstance(message, dict) for message in prompt))
