"""What the library can refuse, as exceptions. Each is also the builtin that a caller would expect.

`code` is the negative mm2_status of csrc/minimax2.h; the text is the library's own sentence.
"""


class Error(Exception):
    """Base of everything that minimax2 raises on its own account."""

    code = 0


class ArgumentError(Error, ValueError):
    """An argument is out of range, of the wrong size, or the object is closed or not ready."""


class OutOfMemory(Error, MemoryError):
    """Not enough memory; the sentence says how much was needed."""


class FileError(Error, OSError):
    """A file cannot be opened, mapped or read."""


class FormatError(Error, ValueError):
    """A file is damaged, inconsistent or not of this family."""


class ContextFull(Error):
    """The session has no room for that many more tokens."""


class BusyError(Error):
    """The object is in use by another thread, a trace or a batch."""


class UnsupportedError(Error):
    """A valid file or request that this build or machine cannot serve."""


class NumericError(Error, ArithmeticError):
    """Logits that are NaN, or leave no token to choose."""
