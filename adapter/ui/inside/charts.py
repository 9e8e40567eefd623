"""The charts of the panel Inside as HTML, for keyboards and screen readers too. The model's text is escaped."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from adapter.ui.texts import page as texts

if TYPE_CHECKING:
    from torch import Tensor

    from adapter.serve.inspection import Inspection

_READOUT = '<output class="readout" aria-live="off"></output>'  # the cell's title is spoken


def message_html(text: str) -> str:
    """A message in place of a chart; plain text."""
    return f'<p class="remark">{html.escape(text)}</p>'


def gates_html(inspection: Inspection, names: Sequence[str]) -> str:
    """A heat map of each adapter's gates, layer by head. names: of the inspection's parts."""
    maps = [
        _heat_map(name, (texts.GATES_OF, texts.GATE_CELL), part.layers, part.gates, _short)
        for name, part in zip(names, inspection.parts, strict=True)
    ]
    return f'<div class="gates"><p>{html.escape(texts.GATES_MEAN)}</p>{"".join(maps)}{_READOUT}</div>'


def answer_html(inspection: Inspection, key: str, total: int) -> str:
    """The answer as one button for each token, in the shade of what the picture did to it, or the adapter. key:
    returned by a press; total: the number of tokens of the answer, of which `inspection` may hold the first.
    """
    seen = inspection.grounding is not None
    values = inspection.grounding if inspection.grounding is not None else inspection.influence
    largest = float(values.abs().max())
    buttons = []
    for i, (text, value) in enumerate(zip(inspection.tokens, values.tolist(), strict=True)):
        label, breaks = _token_label(text, last=i == total - 1), "<br>" * text.count("\n")
        mark = ' class="less"' if value < 0 else ""
        buttons.append(
            f'<button type="button" data-i="{i}"{mark} style="--v:{value / (largest or 1.0):.2f}" '
            f'title="{_token_numbers(inspection, i)}">{label}</button>{breaks}'
        )
    means = texts.GROUNDING_MEANS if seen else texts.INFLUENCE_MEANS
    mixed = f"<p>{html.escape(texts.MIX_MEANS)}</p>" if len(inspection.parts) > 1 else ""
    cut = message_html(texts.only_first(len(inspection.tokens), total)) if total > len(inspection.tokens) else ""
    return (
        f"{mixed}<p>{html.escape(means)}</p>{_legend(_signed(-largest), _signed(largest), 'both')}"
        f'<div class="tokens" dir="auto" data-roving data-key="{html.escape(key)}" role="group" '
        f'aria-label="{html.escape(texts.TOKENS_LABEL)}">{"".join(buttons)}</div>{cut}'
    )


def token_html(inspection: Inspection, index: int, names: Sequence[str], total: int) -> str:
    """One token's numbers, and a heat map of its attention to each adapter's prompts, layer by prompt. total: as
    answer_html has it.
    """
    maps = [
        _heat_map(name, (texts.PROMPTS_OF, texts.PROMPT_CELL), part.layers, part.prompt_weights[index], _percent)
        for name, part in zip(names, inspection.parts, strict=True)
    ]
    label = _token_label(inspection.tokens[index], last=index == total - 1)
    return (
        f'<div class="token"><p><b class="word">{label}</b> {_token_numbers(inspection, index)}</p>'
        f"<p>{html.escape(texts.PROMPTS_MEAN)}</p>{''.join(maps)}{_READOUT}</div>"
    )


def _heat_map(
    name: str, told: tuple[str, str], layers: Sequence[int], values: Tensor, written: Callable[[float], str]
) -> str:
    """values: [layer, column]; told: what it is of, and the text of a cell, with {row}, {column} and {value}."""
    of, cell = (html.escape(text) for text in (told[0].format(name), told[1]))
    largest = float(values.abs().max())
    head = "".join(f'<th scope="col">{i}</th>' for i in range(values.shape[1]))
    rows = []
    for layer, row in zip(layers, values.tolist(), strict=True):
        cells = "".join(f'<td style="--v:{value / (largest or 1.0):.2f}">{written(value)}</td>' for value in row)
        rows.append(f'<tr><th scope="row">{layer}</th>{cells}</tr>')
    low = ("0 %", "one") if written is _percent else (_signed(-largest), "both")
    high = written(largest) + " %" if written is _percent else _signed(largest)
    return (
        f'<figure><figcaption>{html.escape(name)}</figcaption><div class="scroll"><table role="grid" data-roving '
        f'style="--columns:{values.shape[1]}" aria-label="{of}" data-cell-text="{cell}"><thead><tr>'
        f'<th scope="col">{html.escape(texts.LAYER)}</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        f"</div>{_legend(low[0], high, low[1])}</figure>"
    )


def _legend(low: str, high: str, sides: str) -> str:
    """A strip of the colours with the numbers of its ends. sides: "both" sides of 0, or "one"."""
    return f'<div class="legend"><span>{low}</span><i class="{sides}"></i><span>{high}</span></div>'


def _token_label(text: str, last: bool) -> str:
    """A token's text as the label of its button."""
    end = html.escape(texts.END_TOKEN) if last else "·"
    return html.escape(text).replace("\n", "↵") if text else f"<em>{end}</em>"


def _token_numbers(inspection: Inspection, index: int) -> str:
    """A token's numbers as a sentence; safe as HTML and in an attribute."""
    influence, logprob = _signed(inspection.influence[index]), _signed(inspection.logprobs[index])
    if inspection.grounding is None:
        return str(texts.token_numbers(influence, logprob))
    return str(texts.seen_token_numbers(influence, _signed(inspection.grounding[index]), logprob))


def _signed(value: float | Tensor) -> str:
    """+1.25, −0.30, 0.00 for a value that rounds to zero, and 0 for zero."""
    value = float(value)
    if abs(value) < 0.005:
        return "0.00" if value else "0"
    return f"{value:+.2f}".replace("-", "−")


def _short(value: float) -> str:
    """.34, −.05, 1.20: for the narrow cells of a heat map."""
    text = f"{abs(value):.2f}"
    return ("−" if value < 0 and float(text) else "") + text.removeprefix("0")


def _percent(value: float) -> str:
    return f"{value * 100:.0f}"
