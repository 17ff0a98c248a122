"""What the library can refuse, as exceptions. Each is also the builtin that a caller would expect.

`code` is the negative mm2_status of csrc/minimax2.h; the text is the library's own sentence.
"""

import errno
import os
import re
from typing import Any


class Error(Exception):
    """Base of everything that minimax2 raises on its own account."""

    code = 0


class ArgumentError(Error, ValueError):
    """An argument is out of range, of the wrong size, or the object is closed or not ready."""


class OutOfMemory(Error, MemoryError):
    """Not enough memory; the sentence says how much was needed."""


class FileError(Error, OSError):
    """A file cannot be opened, mapped or read; `errno` and `filename` where they are known.

    What Python has a class for is of that class too: a missing file is caught by
    `except FileNotFoundError`, a forbidden one by `except PermissionError`, a folder by
    `except IsADirectoryError`.
    """

    def __str__(self) -> str:
        return str(super().__str__() if self.strerror is None else self.strerror)

    def __reduce__(self) -> Any:
        return file_error, (str(self),)


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


def _also(builtin: type[OSError]) -> type[FileError]:
    """A FileError, by name too, that is of this class as well."""
    return type("FileError", (FileError, builtin), {"__doc__": FileError.__doc__,
                                                    "__module__": __name__})


_missing, _forbidden, _folder, _no_folder = map(_also, (
    FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError))
_BY_ERRNO = {errno.ENOENT: _missing, errno.EACCES: _forbidden, errno.EPERM: _forbidden,
             errno.EISDIR: _folder, errno.ENOTDIR: _no_folder}
_REASONS = {os.strerror(number): number for number in errno.errorcode}
# The library's sentences on files: "PATH: cannot open it: REASON", "PATH: expected a ..., found a
# folder", "PATH: no such file".
_SENTENCE = re.compile(r"(?s)(?P<path>.+?): (?:cannot [^:]*: (?P<reason>.*)|no such file|"
                       r"(?P<folder>expected .*, found a (?:folder|directory)))$")


def file_error(sentence: str) -> FileError:
    """The FileError of a sentence, with the errno and the file that it names."""
    found = _SENTENCE.match(sentence)
    if found is None:
        return FileError(sentence)
    if found["reason"] is not None:
        number = _REASONS.get(found["reason"])
    else:
        number = errno.EISDIR if found["folder"] else errno.ENOENT
    if number is None:
        return FileError(sentence)
    return _BY_ERRNO.get(number, FileError)(number, sentence, found["path"])
