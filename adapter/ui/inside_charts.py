"""The pictures of the panel Inside as HTML: maps of numbers, and an answer in coloured tokens.

Knows the numbers of an inspection and the page's words; knows no components and no models. Every number stands as
text beside its colour, what comes from a model is escaped, and inside.js and inside.css do the rest.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from adapter.ui.texts import inside as texts

if TYPE_CHECKING:
    from torch import Tensor

    from adapter.serve.inspection import Inspection

Names = Sequence[str]  # of the adapters, in the order of the inspection's parts


def said_html(text: str) -> str:
    """What the page itself has to say, in a picture's place. text: plain."""
    return f'<p class="said">{html.escape(text)}</p>'


def gates_html(found: Inspection, names: Names, muted: tuple[Sequence[int], Sequence[int]]) -> str:
    """A map of the gates for each adapter, layer by head, whose headings are switches.

    muted: layers and heads that were muted in this answer.
    """
    most = max(float(part.gates.abs().max()) for part in found.parts) or 1.0
    maps = []
    for name, part in zip(names, found.parts, strict=True):
        heads = range(part.gates.shape[1])
        head = "".join(f'<th scope="col">{_switch("head", i)}</th>' for i in heads)
        rows = [
            _row(_switch("layer", layer), [(v / most, _short(v)) for v in values])
            for layer, values in zip(part.layers, part.gates.tolist(), strict=True)
        ]
        caption = f"<figcaption>{html.escape(name)}</figcaption>" if len(names) > 1 else ""
        table = _table(texts.GATES_OF.format(name), texts.GATE_SAYS, head, rows)
        maps.append(f"<figure>{caption}{table}</figure>")
    answered = "|".join(",".join(str(i) for i in sorted(set(which))) for which in muted)
    return (
        f'<div class="gates" data-muted="{answered}"><p>{html.escape(texts.GATES_MEAN)}</p>{"".join(maps)}'
        f"{_legend(-most, most)}{_READOUT}</div>"
    )


def answer_html(found: Inspection, key: str, total: int) -> str:
    """The answer as one button a token, with what each of the three colours needs.

    key: what a click sends along; total: tokens of the whole answer, of which the first are shown.
    """
    measures = {"d": found.prompt_share, "i": found.influence}
    if found.grounding is not None:
        measures["g"] = found.grounding
    low, high = float(found.prompt_share.min()), float(found.prompt_share.max())
    most = {name: float(values.abs().max()) or 1.0 for name, values in measures.items()}
    shades = {name: (values / most[name]).tolist() for name, values in measures.items()}
    # What was drawn differs little between tokens.
    shades["d"] = ((found.prompt_share - low) / ((high - low) or 1.0)).tolist()
    buttons = []
    for i, text in enumerate(found.tokens):
        style = ";".join(f"--{name}:{_digits(values[i])}" for name, values in shades.items())
        signs = [f"n{name}" for name in ("i", "g") if name in measures and float(measures[name][i]) < 0]
        marks = f' class="{" ".join(signs)}"' if signs else ""
        words, after = _shown(text, last=i == total - 1)
        buttons.append(
            f'<button type="button" data-i="{i}"{marks} style="{style}" title="{numbers_of(found, i)}">{words}'
            f"</button>{after}"
        )
    legends = [_meaning("drawn", texts.DRAWN_MEANS, _legend(low, high, percent=True))]
    legends.append(_meaning("influence", texts.INFLUENCE_MEANS, _legend(-most["i"], most["i"])))
    if "g" in most:
        legends.append(_meaning("grounding", texts.GROUNDING_MEANS, _legend(-most["g"], most["g"])))
    cut = said_html(texts.only_first(len(found.tokens), total)) if total > len(found.tokens) else ""
    mixed = f"<p>{html.escape(texts.MIX_MEANS)}</p>" if len(found.parts) > 1 else ""
    return (
        f'{mixed}{"".join(legends)}<div class="tokens" data-roving data-key="{html.escape(key)}" role="group" '
        f'aria-label="{html.escape(texts.TOKENS_LABEL)}">{"".join(buttons)}</div>{cut}'
    )


def token_html(found: Inspection, index: int, names: Names) -> str:
    """One token's numbers, and which prompts it looked at: a map for each adapter, layer by prompt."""
    maps = []
    for name, part in zip(names, found.parts, strict=True):
        weights = part.prompt_weights[index]  # [L, K]
        most = float(weights.max()) or 1.0
        head = "".join(f'<th scope="col">{k}</th>' for k in range(weights.shape[1]))
        rows = [
            _row(str(layer), [(v / most, f"{v * 100:.0f}") for v in values])
            for layer, values in zip(part.layers, weights.tolist(), strict=True)
        ]
        caption = f"<figcaption>{html.escape(name)}</figcaption>" if len(names) > 1 else ""
        table = _table(texts.PROMPTS_OF.format(name), texts.PROMPT_SAYS, head, rows)
        maps.append(f"<figure>{caption}{table}{_legend(0.0, most, percent=True)}</figure>")
    words, _ = _shown(found.tokens[index], last=index == len(found.tokens) - 1)
    return (
        f'<div class="token"><p><b class="word">{words}</b> {numbers_of(found, index)}</p>'
        f"<p>{html.escape(texts.PROMPTS_MEAN)}</p>{''.join(maps)}{_READOUT}</div>"
    )


def numbers_of(found: Inspection, index: int) -> str:
    """A token's numbers in words; safe as HTML and in an attribute."""
    grounding = None if found.grounding is None else _signed(found.grounding[index])
    return texts.token_numbers(
        f"{float(found.prompt_share[index]) * 100:.1f}",
        _signed(found.influence[index]),
        grounding,
        _signed(found.logprobs[index]),
    )


_READOUT = '<output class="readout" aria-live="polite"></output>'


def _switch(what: str, number: int) -> str:
    label = html.escape(f"{texts.MUTE[what]} {number}")
    return f'<button type="button" data-mute="{what}" data-n="{number}" aria-label="{label}">{number}</button>'


def _table(label: str, says: str, head: str, rows: Sequence[str]) -> str:
    """says: what is read out of a cell, with {row}, {column} and {value}."""
    told = f'aria-label="{html.escape(label)}" data-says="{html.escape(says)}"'
    return (
        f'<div class="scroll"><table role="grid" data-roving style="--columns:{head.count("<th")}" {told}>'
        f'<thead><tr><th scope="col">{html.escape(texts.LAYER)}</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(heading: str, cells: Sequence[tuple[float, str]]) -> str:
    """cells: (shade from -1 to 1, text) pairs."""
    shades = [(_digits(shade), text) for shade, text in cells]
    shown = "".join(f'<td style="--v:{v}">{text}</td>' if v != "0" else f"<td>{text}</td>" for v, text in shades)
    return f'<tr><th scope="row">{heading}</th>{shown}</tr>'


def _legend(low: float, high: float, percent: bool = False) -> str:
    """A strip from the lowest to the highest colour, with their numbers."""
    ends = [f"{v * 100:.0f} %" if percent else _signed(v) for v in (low, high)]
    both = "both" if low < 0 else "one"
    return f'<div class="legend"><span>{ends[0]}</span><i class="{both}"></i><span>{ends[1]}</span></div>'


def _meaning(which: str, sentence: str, legend: str) -> str:
    return f'<div class="means" data-for="{which}"><p>{html.escape(sentence)}</p>{legend}</div>'


def _shown(text: str, last: bool) -> tuple[str, str]:
    """A token's text as it can be seen and pressed, and what follows its button."""
    if not text:
        return f"<em>{html.escape(texts.END_TOKEN)}</em>" if last else "<em>·</em>", ""
    return html.escape(text).replace("\n", "↵"), "<br>" * text.count("\n")


def _signed(value: float | Tensor) -> str:
    """+1.25, −0.30, 0.00 for what is less than shown, and 0 for what makes no difference."""
    value = float(value)
    if abs(value) < 0.005:
        return "0.00" if value else "0"
    return f"{value:+.2f}".replace("-", "−")


def _short(value: float) -> str:
    """.34, −.05, 1.20: the numbers of a narrow map."""
    text = f"{abs(value):.2f}"
    sign = "−" if value < 0 and float(text) else ""
    return sign + (text[1:] if text.startswith("0") else text)


def _digits(value: float) -> str:
    """Two digits for the style sheet, as short as they can be."""
    short = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if short == "-0" else short
