"""The module that cffi compiles from the header; _native.py gives its functions their types."""

from typing import Any

ffi: Any
lib: Any
