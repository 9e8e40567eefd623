"""The charts of the panel Inside as HTML: heat maps, and an answer as coloured tokens.

Own HTML, because Gradio's plots draw images, and these tables and buttons can be used with a keyboard and a
screen reader. Every number is shown as text too. The model's text is escaped. inside.js and inside.css add
behaviour and style.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from adapter.ui.texts import inside as texts

if TYPE_CHECKING:
    from torch import Tensor

    from adapter.serve.inspection import Inspection

AdapterNames = Sequence[str]  # in the order of the inspection's parts


def message_html(text: str) -> str:
    """A message in place of a chart; plain text."""
    return f'<p class="remark">{html.escape(text)}</p>'


def gates_html(inspection: Inspection, names: AdapterNames) -> str:
    """A heat map of each adapter's gates, layer by head."""
    largest = max(float(part.gates.abs().max()) for part in inspection.parts) or 1.0
    maps = []
    for name, part in zip(names, inspection.parts, strict=True):
        heads = range(part.gates.shape[1])
        head = "".join(f'<th scope="col">{i}</th>' for i in heads)
        rows = [
            _row(str(layer), [(v / largest, _short(v)) for v in values])
            for layer, values in zip(part.layers, part.gates.tolist(), strict=True)
        ]
        caption = f"<figcaption>{html.escape(name)}</figcaption>" if len(names) > 1 else ""
        table = _table(texts.GATES_OF.format(name), texts.GATE_CELL, head, rows)
        maps.append(f"<figure>{caption}{table}</figure>")
    return (
        f'<div class="gates"><p>{html.escape(texts.GATES_MEAN)}</p>{"".join(maps)}'
        f"{_legend(-largest, largest)}{_READOUT}</div>"
    )


def answer_html(inspection: Inspection, key: str, total: int) -> str:
    """The answer as one button for each token, in the shade of what the picture did to it, or the adapter.

    key: returned by a press; total: the number of tokens of the answer, of which `inspection` may hold the first.
    """
    seen = inspection.grounding is not None
    values = inspection.grounding if inspection.grounding is not None else inspection.influence
    largest = float(values.abs().max()) or 1.0
    buttons = []
    for i, (text, value) in enumerate(zip(inspection.tokens, values.tolist(), strict=True)):
        label, after = _token_label(text, last=i == total - 1)
        mark = ' class="less"' if value < 0 else ""
        buttons.append(
            f'<button type="button" data-i="{i}"{mark} style="--v:{_digits(value / largest)}" '
            f'title="{token_numbers(inspection, i)}">{label}</button>{after}'
        )
    means = texts.GROUNDING_MEANS if seen else texts.INFLUENCE_MEANS
    mixed = f"<p>{html.escape(texts.MIX_MEANS)}</p>" if len(inspection.parts) > 1 else ""
    cut = message_html(texts.only_first(len(inspection.tokens), total)) if total > len(inspection.tokens) else ""
    return (
        f"{mixed}<p>{html.escape(means)}</p>{_legend(-largest, largest)}"
        f'<div class="tokens" data-roving data-key="{html.escape(key)}" role="group" '
        f'aria-label="{html.escape(texts.TOKENS_LABEL)}">{"".join(buttons)}</div>{cut}'
    )


def token_html(inspection: Inspection, index: int, names: AdapterNames) -> str:
    """One token's numbers, and a heat map of its attention to each adapter's prompts, layer by prompt."""
    maps = []
    for name, part in zip(names, inspection.parts, strict=True):
        weights = part.prompt_weights[index]  # [L, K]
        largest = float(weights.max()) or 1.0
        head = "".join(f'<th scope="col">{k}</th>' for k in range(weights.shape[1]))
        rows = [
            _row(str(layer), [(v / largest, f"{v * 100:.0f}") for v in values])
            for layer, values in zip(part.layers, weights.tolist(), strict=True)
        ]
        caption = f"<figcaption>{html.escape(name)}</figcaption>" if len(names) > 1 else ""
        table = _table(texts.PROMPTS_OF.format(name), texts.PROMPT_CELL, head, rows)
        maps.append(f"<figure>{caption}{table}{_legend(0.0, largest, percent=True)}</figure>")
    label, _ = _token_label(inspection.tokens[index], last=index == len(inspection.tokens) - 1)
    return (
        f'<div class="token"><p><b class="word">{label}</b> {token_numbers(inspection, index)}</p>'
        f"<p>{html.escape(texts.PROMPTS_MEAN)}</p>{''.join(maps)}{_READOUT}</div>"
    )


def token_numbers(inspection: Inspection, index: int) -> str:
    """A token's numbers as a sentence; safe as HTML and in an attribute."""
    grounding = None if inspection.grounding is None else _signed(inspection.grounding[index])
    return texts.token_numbers(
        _signed(inspection.influence[index]),
        grounding,
        _signed(inspection.logprobs[index]),
    )


_READOUT = '<output class="readout" aria-live="polite"></output>'


def _table(label: str, cell_text: str, head: str, rows: Sequence[str]) -> str:
    """cell_text: the description of a cell, with {row}, {column} and {value}."""
    attributes = f'aria-label="{html.escape(label)}" data-cell-text="{html.escape(cell_text)}"'
    return (
        f'<div class="scroll"><table role="grid" data-roving style="--columns:{head.count("<th")}" {attributes}>'
        f'<thead><tr><th scope="col">{html.escape(texts.LAYER)}</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(heading: str, cells: Sequence[tuple[float, str]]) -> str:
    """cells: (shade from -1 to 1, text) pairs."""
    shades = [(_digits(shade), text) for shade, text in cells]
    tags = "".join(f'<td style="--v:{v}">{text}</td>' if v != "0" else f"<td>{text}</td>" for v, text in shades)
    return f'<tr><th scope="row">{heading}</th>{tags}</tr>'


def _legend(low: float, high: float, percent: bool = False) -> str:
    """A strip of the colours with the numbers of its ends."""
    ends = [f"{v * 100:.0f} %" if percent else _signed(v) for v in (low, high)]
    both = "both" if low < 0 else "one"
    return f'<div class="legend"><span>{ends[0]}</span><i class="{both}"></i><span>{ends[1]}</span></div>'


def _token_label(text: str, last: bool) -> tuple[str, str]:
    """A token's text as the label of its button, and the line breaks after the button."""
    if not text:
        return f"<em>{html.escape(texts.END_TOKEN)}</em>" if last else "<em>·</em>", ""
    return html.escape(text).replace("\n", "↵"), "<br>" * text.count("\n")


def _signed(value: float | Tensor) -> str:
    """+1.25, −0.30, 0.00 for a value that rounds to zero, and 0 for zero."""
    value = float(value)
    if abs(value) < 0.005:
        return "0.00" if value else "0"
    return f"{value:+.2f}".replace("-", "−")


def _short(value: float) -> str:
    """.34, −.05, 1.20: for the narrow cells of a heat map."""
    text = f"{abs(value):.2f}"
    sign = "−" if value < 0 and float(text) else ""
    return sign + (text[1:] if text.startswith("0") else text)


def _digits(value: float) -> str:
    """At most two decimals, for the style sheet."""
    short = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if short == "-0" else short
