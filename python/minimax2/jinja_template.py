"""A checkpoint's own chat template, run by Jinja, where the library does not know it.

Rendered as Hugging Face's transformers does, in Jinja's sandbox. The text that comes out is then
read with its control tokens, and a message could hold the same letters. So every place in the
messages and tools where one could begin gets a mark, a character that is nowhere else; what still
is a control token behind the rendering, the template has written. The marks go before the rest is
encoded.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minimax2.errors import ArgumentError, FormatError, UnsupportedError

_MARKS = range(0xE000, 0xF900)  # for private use
_KINDS = ("role", "type")  # what a template looks at, not what somebody says


class JinjaTemplate:
    """The template `source`; control: the texts that become control tokens when they are read,
    variables: what it may use besides the conversation, such as bos_token."""

    def __init__(self, source: str, control: Sequence[str], variables: Mapping[str, str]) -> None:
        self._template = _compiled(source)
        self._source = source
        self._variables = dict(variables)
        tokens = [token for token in control if len(token) > 1]
        self._first = re.compile("|".join({re.escape(token[0]) for token in tokens}) or "$^")
        self._rests = {token[i:] for token in tokens for i in range(1, len(token))}

    def render(self, messages: Sequence[Mapping[str, Any]],
               tools: Sequence[Mapping[str, Any]] | None, **options: Any) -> tuple[str, str]:
        """The text, with marks in what was said, and the mark."""
        given = json.dumps([messages, tools, options], ensure_ascii=False)
        mark = next((chr(code) for code in _MARKS if chr(code) not in given + self._source
                     and rf"\u{code:04x}" not in given), "")
        if not mark:
            raise ArgumentError("the messages hold all characters for private use")
        said = [self._marked(_understood(message, i), mark) for i, message in enumerate(messages)]
        try:
            text = self._template.render(messages=said, tools=self._marked(tools, mark) or None,
                                         **self._variables, **self._marked(options, mark))
        except Exception as error:  # of any kind: it is a program of somebody else's
            raise ArgumentError("the checkpoint's chat template does not render these messages: "
                                f"{type(error).__name__}: {error}".replace(mark, "")) from error
        return str(text).replace(rf"\u{ord(mark):04x}", mark), mark

    def _marked(self, value: Any, mark: str) -> Any:
        """A value of JSON whose strings cannot become a control token, or a part of one."""
        if isinstance(value, str):
            text = self._first.sub(rf"\g<0>{mark}", value)
            goes_on = value and any(rest.startswith(value) or value.startswith(rest)
                                    for rest in self._rests)
            return mark + text if goes_on else text
        if isinstance(value, Mapping):
            return {self._first.sub(rf"\g<0>{mark}", key):
                    inner if key in _KINDS and isinstance(inner, str)
                    and not self._first.search(inner) else self._marked(inner, mark)
                    for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._marked(inner, mark) for inner in value]
        return value


def _understood(message: Mapping[str, Any], index: int) -> dict[str, Any]:
    """A message, with its thinking under the name that templates know."""
    made = dict(message)
    if not isinstance(made.get("role"), str):
        raise ArgumentError(f"message {index} has no role")
    thinking = made.pop("thinking", None)
    if made["role"] == "assistant":
        if "</think>" in json.dumps(made.get("content"), ensure_ascii=False):
            raise ArgumentError(f"message {index} has </think> in its content: give the thinking "
                                "as reasoning_content; with template=\"jinja\" a text stays one")
        if thinking is not None:
            made.setdefault("reasoning_content", thinking)
    return made


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None,
            separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)


def _compiled(source: str) -> Any:
    """What Jinja makes of a template, with all that transformers gives it."""
    try:
        import jinja2
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise UnsupportedError('template="jinja" needs Jinja2: pip install '
                               '"minimax2[jinja]"') from None

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                extensions=[loopcontrols])
    environment.filters["tojson"] = _tojson
    now: Callable[[str], str] = lambda form: datetime.datetime.now().strftime(form)  # noqa: E731
    environment.globals.update(raise_exception=raise_exception, strftime_now=now)
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise FormatError(f"the checkpoint's chat template, line {error.lineno}: {error}") from None
