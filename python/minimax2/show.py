"""What notebooks and the command show: sizes in words, small HTML tables."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minimax2.generation import Generation
    from minimax2.model import Model


def si(number: float) -> str:
    """Three digits and a letter: 229 B, 8.19 k."""
    for power, letter in ((12, "T"), (9, "B"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:.3g} {letter}"
    return f"{number:.3g}"


def size(nbytes: float) -> str:
    """Bytes as people write them: 8.4 MB."""
    text = si(nbytes)
    return (text if text[-1].isalpha() else text + " ").replace(" B", " G") + "B"


def table(rows: Iterable[tuple[str, Any]]) -> str:
    """Rows of (name, value) as a small table."""
    cells = "".join(f"<tr><th style='text-align:left'>{escape(str(name))}</th>"
                    f"<td style='text-align:left'>{escape(str(value))}</td></tr>"
                    for name, value in rows if value is not None)
    return f"<table>{cells}</table>"


def grid(rows: Iterable[Iterable[str]]) -> str:
    """Rows of cells as a table, the first row as headings."""
    first, *others = ([escape(cell) for cell in row] for row in rows)
    lines = [f"<th>{'</th><th>'.join(first)}</th>",
             *(f"<td>{'</td><td>'.join(row)}</td>" for row in others)]
    return f"<table><tr>{'</tr><tr>'.join(lines)}</tr></table>"


def facts(model: Model) -> list[tuple[str, Any]]:
    """What there is to say about a model: a list of (name, value)."""
    config = model.config
    licence = model.info("license")
    return [
        ("name", model.info("name")),
        ("path", model.path),
        ("format", f"{model.info('format')}, {model.info('quantization')}"),
        ("architecture", model.info("architecture")),
        ("license", licence),
        ("parameters", f"{si(model.parameters)} ({size(model.nbytes)})"),
        ("layers", config.num_hidden_layers),
        ("hidden size", config.hidden_size),
        ("heads", f"{config.num_attention_heads} query, {config.num_key_value_heads} key/value, "
                  f"{config.head_dim} wide"),
        ("experts", f"{config.num_local_experts} a layer, {config.num_experts_per_tok} active, "
                    f"{config.intermediate_size} wide"),
        ("vocabulary", config.vocab_size),
        ("positions", config.max_position_embeddings),
        ("chat template", model.info("chat_template")),
        ("runs on", f"{model.info('isa')}, {model.threads} threads"),
    ]


def generation(result: Generation) -> str:
    """A generation's text above what is known about it."""
    timing = result.timing
    rows = [
        ("tokens", len(result.tokens)),
        ("finish reason", result.finish_reason),
        ("seed", result.seed),
        ("speed", f"prompt {timing.prompt_speed:.0f} tokens/s, then {timing.speed:.1f} tokens/s"),
    ]
    thinking = f"<p style='opacity:0.6'>{escape(result.thinking)}</p>" if result.thinking else ""
    return f"{thinking}<p style='white-space:pre-wrap'>{escape(result.text)}</p>{table(rows)}"
