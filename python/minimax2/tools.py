"""Tools: Python functions that a model may call.

A function's signature becomes a JSON schema, its docstring the description. What the model gives
as arguments is held against the schema; what is wrong with it, and what the function raises, is a
result that the model reads, so that it can try again.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import inspect
import json
import re
import threading
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import (TYPE_CHECKING, Annotated, Any, Literal, NotRequired, Required, Union, get_args,
                    get_origin, get_type_hints, is_typeddict)

from minimax2.errors import ArgumentError

if TYPE_CHECKING:
    from minimax2.generation import ToolCall

Schema = dict[str, Any]

# ---- From annotations to schemas ----

_SIMPLE = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_LISTS = (list, set, frozenset, tuple, Sequence, Iterable)


def _schema(hint: Any, defs: Schema) -> Schema:
    """The JSON schema of an annotation; TypeError where there is none."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        texts = [extra for extra in args[1:] if isinstance(extra, str)]
        return {**_schema(args[0], defs), **({"description": texts[0]} if texts else {})}
    if origin in (Required, NotRequired):
        return _schema(args[0], defs)
    if origin is Literal:
        return {"enum": list(args)}
    if hint is Any:
        return {}
    if hint in _SIMPLE:
        return {"type": _SIMPLE[hint]}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(arg, defs) for arg in args]}
    if (origin or hint) in _LISTS:
        items = [arg for arg in args if arg is not Ellipsis]
        return {"type": "array", **({"items": _schema(items[0], defs)} if len(set(items)) == 1
                                    else {})}
    if (origin or hint) in (dict, Mapping):
        more = {"additionalProperties": _schema(args[1], defs)} if args else {}
        return {"type": "object", **more}
    return _schema_of_class(hint, defs)


def _schema_of_class(hint: Any, defs: Schema) -> Schema:
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return {"enum": [member.value for member in hint]}
    if _is_pydantic(hint):
        made: Schema = dict(hint.model_json_schema())
        defs.update(made.pop("$defs", {}))
        return made
    if is_typeddict(hint):
        hints = get_type_hints(hint, include_extras=True)
        return {"type": "object",
                "properties": {name: _schema(inner, defs) for name, inner in hints.items()},
                "required": [name for name in hints if name in hint.__required_keys__]}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = get_type_hints(hint, include_extras=True)
        fields = [field for field in dataclasses.fields(hint) if field.init]
        return {"type": "object",
                "properties": {field.name: _schema(hints[field.name], defs) for field in fields},
                "required": [field.name for field in fields
                             if field.default is field.default_factory is dataclasses.MISSING]}
    raise TypeError(f"{hint!r} has no JSON schema; annotate with str, int, float, bool, list, "
                    "dict, Literal, Optional, an Enum, a dataclass, a TypedDict or a pydantic "
                    "model")


def _is_pydantic(hint: Any) -> bool:
    return isinstance(hint, type) and hasattr(hint, "model_json_schema")


def _build(hint: Any, value: Any) -> Any:
    """What a function expects for a JSON value that fits the schema of its annotation."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Annotated, Required, NotRequired):
        return _build(args[0], value)
    if origin in (Union, types.UnionType):
        for arg in args:
            defs: Schema = {}
            if _fault(_schema(arg, defs), value, "", {"$defs": defs}) is None:
                return _build(arg, value)
        return value
    if isinstance(value, list):
        kind = origin or hint
        inner = [arg for arg in args if arg is not Ellipsis] or [Any]
        made = [_build(inner[min(i, len(inner) - 1)], item) for i, item in enumerate(value)]
        return kind(made) if kind in (set, frozenset, tuple) else made
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint(value)
    if _is_pydantic(hint):
        return hint.model_validate(value)
    if isinstance(value, dict) and (dataclasses.is_dataclass(hint) or is_typeddict(hint)):
        hints = get_type_hints(hint, include_extras=True)
        make: Any = hint
        return make(**{name: _build(hints[name], item) for name, item in value.items()
                       if name in hints})
    if isinstance(value, dict) and len(args) == 2:
        return {key: _build(args[1], item) for key, item in value.items()}
    return hint(value) if hint in (int, float) else value


# ---- Holding values against schemas; lua/minimax2/tools.lua says the same ----

_CHECKS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "string": ("a string", lambda value: isinstance(value, str)),
    "integer": ("an integer", lambda value: _is_number(value) and value == value // 1),
    "number": ("a number", lambda value: _is_number(value)),
    "boolean": ("true or false", lambda value: isinstance(value, bool)),
    "null": ("null", lambda value: value is None),
    "array": ("a list", lambda value: isinstance(value, list)),
    "object": ("an object", lambda value: isinstance(value, dict)),
}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
    return text.decode() if len(text) <= 60 else text[:60].decode("utf-8", "ignore") + "..."


def _fault(schema: Any, value: Any, name: str, root: Schema) -> str | None:
    """What is wrong with a value, a sentence; None: nothing."""
    for _ in range(16):
        if not isinstance(schema, Mapping) or "$ref" not in schema:
            break
        schema = root.get("$defs", {}).get(str(schema["$ref"]).rpartition("/")[2])
    if not isinstance(schema, Mapping):
        return None
    allowed = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if allowed is not None and not any(value == other and isinstance(value, bool) == isinstance(
            other, bool) for other in allowed):
        return f"{name} must be one of {', '.join(map(_shown, allowed))}, not {_shown(value)}"
    others = schema.get("anyOf") or schema.get("oneOf")
    if others:
        faults = [_fault(other, value, name, root) for other in others]
        return None if None in faults else faults[0]
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    known = [_CHECKS[kind] for kind in kinds if kind in _CHECKS]
    if known and not any(fits(value) for _, fits in known):
        words = " or ".join(word for word, _ in known)
        return f"{name} must be {words}, not {_shown(value)}"
    if isinstance(value, list):
        return next(filter(None, (_fault(schema.get("items"), item, f"{name}[{i}]", root)
                                  for i, item in enumerate(value, 1))), None)
    return _fault_of_object(schema, value, name, root) if isinstance(value, dict) else None


def _fault_of_object(schema: Mapping[str, Any], value: dict[str, Any], name: str,
                     root: Schema) -> str | None:
    known, more = schema.get("properties", {}), schema.get("additionalProperties")
    before = f"{name}." if name else ""
    for key in schema.get("required", []):
        if key not in value:
            return f"{before}{key} is missing"
    for key in sorted(value):
        if key not in known and (more is False or (more is None and not name)):
            names = ", ".join(sorted(known)) or "none"
            return f"{before}{key} is no argument; there are: {names}"
        fault = _fault(known.get(key, more), value[key], before + key, root)
        if fault:
            return fault
    return None


# ---- Docstrings ----

_SECTION = re.compile(r"^(Args|Arguments|Parameters|Returns?|Raises|Yields|Examples?|Notes?):\s*$")
_ARGUMENT = re.compile(r"^\s+\*{0,2}(\w+)(?:\s*\([^)]*\))?:\s*(.*)$")
_FIELD = re.compile(r"^:(?:param|parameter)\s+(?:[^:]*\s)?(\w+):\s*(.*)$")


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """What a function does, and what its arguments are (an Args section, or :param name:)."""
    said: list[str] = []
    about: dict[str, str] = {}
    section, name = "", ""
    for line in text.splitlines():
        head, argument = _SECTION.match(line), _ARGUMENT.match(line)
        field = _FIELD.match(line)
        if head:
            section, name = head[1], ""
        elif field:
            section, name = ":", field[1]
            about[name] = field[2]
        elif line.startswith(":"):
            section, name = ":", ""
        elif section in ("Args", "Arguments", "Parameters") and argument:
            name = argument[1]
            about[name] = argument[2]
        elif section and name and line.strip():
            about[name] = f"{about[name]} {line.strip()}".strip()
        elif not section:
            said.append(line)
    return "\n".join(said).strip(), about


# ---- Tools ----


class Tool:
    """A function that a model may call, and how it is declared.

    `tools=[f]` makes one of a function by itself: its name, its docstring, and of its annotations
    a JSON schema. Tool(f, name=, description=, parameters=) says otherwise; with `parameters`, a
    schema, f gets what JSON has. A function may be async.
    """

    __slots__ = ("_hints", "call", "description", "name", "parameters")

    def __init__(self, call: Callable[..., Any], *, name: str | None = None,
                 description: str | None = None, parameters: Schema | None = None) -> None:
        if not callable(call):
            raise TypeError(f"tools: a tool needs a function, not {type(call).__name__}")
        own = getattr(call, "__name__", "") if name is None else name
        if not own or own == "<lambda>":
            raise ArgumentError("tools: a function without a name needs minimax2.Tool(function, "
                                "name=...)")
        _check_tool(call, own, description, parameters)
        said, about = _read_docstring(inspect.getdoc(call) or "")
        self.call = call
        self.name = own
        self.description = said if description is None else description
        self._hints: dict[str, Any] | None = None
        if parameters is None:
            parameters, self._hints = _parameters(call, own, about)
        self.parameters = parameters

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)

    def declaration(self) -> dict[str, Any]:
        """What the model is told."""
        return {"type": "function", "function": {
            "name": self.name, "description": self.description, "parameters": self.parameters}}

    def arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        """Arguments for the function; ValueError if they do not fit."""
        fault = _fault_of_object(self.parameters, given, "", self.parameters)
        if fault:
            raise ValueError(fault)
        if self._hints is None:
            return given
        return {name: _build(self._hints.get(name, Any), value) for name, value in given.items()}

    def __repr__(self) -> str:
        return f"<Tool {self.name}>"


def _function_of(call: Callable[..., Any]) -> Callable[..., Any]:
    """What runs when something is called."""
    source = getattr(call, "func", call)  # of functools.partial
    return source if inspect.isroutine(source) else type(source).__call__


def _check_tool(call: Callable[..., Any], name: Any, description: Any, parameters: Any) -> None:
    """Refuse what no model could be told of, or no result could come of."""
    if not isinstance(name, str):
        raise TypeError(f"tools: the name of a tool must be a str, not {type(name).__name__}")
    if not isinstance(description, str | None):
        raise TypeError(f"tools: the description of {name} must be a str, not "
                        f"{type(description).__name__}")
    if not isinstance(parameters, Mapping | None):
        raise TypeError(f"tools: the parameters of {name} must be a JSON schema (dict), not "
                        f"{type(parameters).__name__}")
    source = _function_of(call)
    if inspect.isgeneratorfunction(source) or inspect.isasyncgenfunction(source):
        raise TypeError(f"tools: {name} is a generator function; a tool returns its result")


def _parameters(call: Callable[..., Any], name: str,
                about: Mapping[str, str]) -> tuple[Schema, dict[str, Any]]:
    """A schema of a function's parameters, and their annotations."""
    try:
        signature = inspect.signature(call)
        hints = get_type_hints(_function_of(call), include_extras=True)
        kinds = {parameter.kind for parameter in signature.parameters.values()}
        if kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY}:
            raise TypeError("models give arguments by name; it takes some by place")
        properties: Schema = {}
        required: list[str] = []
        defs: Schema = {}
        for parameter in signature.parameters.values():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                continue
            made = _schema(hints.get(parameter.name, Any), defs)
            if parameter.name in about:
                made["description"] = about[parameter.name]
            if parameter.default is inspect.Parameter.empty:
                required.append(parameter.name)
            properties[parameter.name] = made
    except RecursionError:
        raise TypeError(f"tools: {name} cannot be declared: an annotation refers to itself, or is "
                        "too deep") from None
    except (TypeError, ValueError, NameError) as error:
        raise TypeError(f"tools: {name} cannot be declared: {error}") from None
    schema: Schema = {"type": "object", "properties": properties}
    if required:
        schema["required"] = required
    if inspect.Parameter.VAR_KEYWORD in kinds:
        schema["additionalProperties"] = {}
    return schema | ({"$defs": defs} if defs else {}), hints


def tool(given: Any) -> Tool:
    """The Tool of a function."""
    return given if isinstance(given, Tool) else Tool(given)


def functions(tools: Any) -> dict[str, Tool]:
    """Those of a list of tools that can be called, by name."""
    found: dict[str, Tool] = {}
    for given in [] if tools is None or isinstance(tools, (str, Mapping)) else tools:
        if callable(given):
            made = tool(given)
            if made.name in found:
                raise ArgumentError(f"tools: two are called {made.name}")
            found[made.name] = made
    return found


# ---- Calling ----


def _prepared(tools: Mapping[str, Tool], call: ToolCall) -> tuple[Tool, dict[str, Any]]:
    """The tool of a call and its arguments; ValueError says what is wrong with it."""
    if call.name not in tools:
        raise ValueError(f"there is no tool {call.name}; there are: {', '.join(sorted(tools))}")
    if call.state != "complete":
        raise ValueError("the call is not complete")
    return tools[call.name], tools[call.name].arguments(call.arguments)


def _said(result: Any) -> str:
    """A result as the model reads it: a str as it is, other values as JSON."""
    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.asdict(value)
        if hasattr(value, "model_dump"):
            return value.model_dump(mode="json")
        if inspect.isgenerator(value):
            raise TypeError("a tool returns its result, not a generator")
        return value.value if isinstance(value, enum.Enum) else str(value)

    try:
        text = result if isinstance(result, str) else json.dumps(
            result, ensure_ascii=False, default=plain, allow_nan=False)
    except ValueError as error:
        if str(error).startswith("Out of range"):
            error = ValueError("JSON has no place for NaN and infinity")
        raise error from None
    if "\0" in text:
        raise ValueError("the result holds a NUL character, which no message can have")
    return text


def _failed(error: Exception) -> str:
    name = "" if type(error) is ValueError else f"{type(error).__name__}: "
    try:
        return f"error: {name}{error}".replace("\0", "\\0")
    except Exception:  # its own __str__ fails
        return f"error: {name}it does not say what"


def _finished(work: Any) -> Any:
    """What an awaitable comes to, wherever we are: under a running loop, in a thread of its own."""
    async def wait() -> Any:
        return await work

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(wait())
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome[:] = asyncio.run(wait()), None
        except BaseException as error:  # goes on in the thread that waits
            outcome[:] = None, error

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def answer(tools: Mapping[str, Tool], call: ToolCall) -> str:
    """Make a call: its result, or "error: ..." for the model to read."""
    try:
        made, arguments = _prepared(tools, call)
        result = made.call(**arguments)
        return _said(_finished(result) if inspect.isawaitable(result) else result)
    except Exception as error:
        return _failed(error)


async def answer_async(tools: Mapping[str, Tool], call: ToolCall) -> str:
    """The same for a coroutine; a function that is not async runs in a thread."""
    try:
        made, arguments = _prepared(tools, call)
        if inspect.iscoroutinefunction(made.call):
            return _said(await made.call(**arguments))
        result = await asyncio.to_thread(made.call, **arguments)
        return _said(await result if inspect.isawaitable(result) else result)
    except Exception as error:
        return _failed(error)
