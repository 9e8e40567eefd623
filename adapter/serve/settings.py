"""The settings of a request that a person can choose: the one place that holds their names, ranges and defaults.

Imports pydantic only: the page is up before torch is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError

from adapter.errors import BadInput

TOP_LOGPROBS = 5  # likeliest tokens that X-ray and inspections name
PAGE_PENALTY = 1.1  # repetition penalty where a person chats; measured, see docs/log.md
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")  # by which tokens are drawn
BASE_ONLY = ""  # the value of `adapter` and `mix` for "no adapter"
SHIPPED = Path(__file__).resolve().parents[2] / "assets" / "adapters"  # that come with the program
MAX_STRENGTH = 2.0
MAX_TEMPERATURE = 2.0
MAX_TOKENS = 2048
MAX_PENALTY = 2.0
MAX_TOP_K = 100_000
MAX_STOPS, MAX_STOP_CHARACTERS = 16, 200
MAX_SYSTEM = 2000  # characters: each answer's record holds them
MAX_SEED = 2**63 - 1
_LONGEST_NAME = 255  # of a folder
# About what a visitor of the page can type wrongly.
_SENTENCES = {
    "seed": "The seed must be a whole number from -2^63 to 2^63 - 1.",
    "stop": f"Stop texts are at most {MAX_STOPS} texts of 1 to {MAX_STOP_CHARACTERS} characters.",
    "system": f"The system prompt is a text of at most {MAX_SYSTEM} characters.",
}
# The page's sliders: their steps, and what is not as the field's range and default.
_SLIDERS: dict[str, dict[str, float]] = {
    "strength": {"step": 0.05},
    "temperature": {"step": 0.05},
    "top_p": {"step": 0.05, "minimum": 0.05},
    "max_tokens": {"step": 16, "minimum": 16, "maximum": 1024},
    "mix_strength": {"step": 0.05},
    "top_k": {"step": 1, "maximum": 100},
    "min_p": {"step": 0.01},
    "repetition_penalty": {"step": 0.01, "value": PAGE_PENALTY},
}


def _to_name(value: Any) -> Any:
    return BASE_ONLY if value is None else value.strip() if isinstance(value, str) else value


def _to_whole_number(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def to_tokens(value: Any) -> Any:
    """A limit of tokens; above MAX_TOKENS it counts as these: many clients ask for 4,096 by themselves."""
    whole = _to_whole_number(value)
    return min(whole, MAX_TOKENS) if isinstance(whole, int) else whole


def _to_seed(value: Any) -> Any:
    """A seed as it was typed or sent; None for an empty field."""
    text = "" if value is None else str(value).strip().removesuffix(".0")
    try:
        return int(text) if text else None
    except ValueError:
        return value


def _to_stops(value: Any) -> Any:
    """Stop texts as they are typed: one a line, `\\n` for a line break; None of a box that was never shown."""
    value = () if value is None else value
    return [line.replace("\\n", "\n") for line in value.splitlines() if line] if isinstance(value, str) else value


def _is_name(value: str) -> str:
    if not value.isprintable():
        raise ValueError("not printable")
    return value


Name = Annotated[str, BeforeValidator(_to_name), Field(max_length=_LONGEST_NAME), AfterValidator(_is_name)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Strength = Annotated[Number, Field(ge=0, le=MAX_STRENGTH)]
Temperature = Annotated[Number, Field(ge=0, le=MAX_TEMPERATURE)]
Probability = Annotated[Number, Field(ge=0, le=1)]
TopK = Annotated[int, BeforeValidator(_to_whole_number), Field(ge=0, le=MAX_TOP_K, strict=True)]
RepetitionPenalty = Annotated[Number, Field(ge=1, le=MAX_PENALTY)]
MaxTokens = Annotated[int, BeforeValidator(to_tokens), Field(ge=1, le=MAX_TOKENS, strict=True)]
_Int64 = Annotated[int, Field(ge=-MAX_SEED - 1, le=MAX_SEED, strict=True)]
Seed = Annotated[_Int64 | None, BeforeValidator(_to_seed)]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Stops = Annotated[Annotated[tuple[Stop, ...], Field(max_length=MAX_STOPS)], BeforeValidator(_to_stops)]
System = Annotated[str, BeforeValidator(_to_name), Field(max_length=MAX_SYSTEM)]
Others = Literal["first sentence", "all", "nothing"]


class SamplingSettings(BaseModel, frozen=True, extra="ignore"):
    """What the page and the API have in common. A title begins the sentence about a wrong value."""

    strength: Strength = Field(1.0, title="Strength", description=f"Up to {MAX_STRENGTH:g}; 1 is as trained")
    temperature: Temperature = Field(
        0.1, title="Temperature", description=f"Temperature, up to {MAX_TEMPERATURE:g}; 0 takes the likeliest word"
    )
    top_p: Probability = Field(0.75, title="Top-p", description="Top-p, up to 1; 0 takes the likeliest word")
    max_tokens: MaxTokens = Field(256, title="Max tokens", description=f"Tokens at most, up to {MAX_TOKENS}")
    seed: Seed = Field(None, description="Seed; the same one gives the same answer")
    top_k: TopK = Field(0, title="Top-k", description="Top-k: only the k likeliest tokens; 0 is off")
    min_p: Probability = Field(
        0.0, title="Min-p", description="Min-p: only tokens as likely as this part of the likeliest; 0 is off"
    )
    repetition_penalty: RepetitionPenalty = Field(
        1.0,
        title="Repetition penalty",
        description=f"Repetition penalty from 1 (none) to {MAX_PENALTY:g}, on tokens of the prompt and the "
        "answer; answers with a form have none",
    )


class Settings(SamplingSettings):
    """What a person chooses for an answer, see `checked`."""

    adapter: Name = Field(BASE_ONLY, title="Adapter", description="Name of an adapter; none is the frozen base")
    mix: Name = Field(BASE_ONLY, title="Second adapter", description="Another adapter, added to the first")
    mix_strength: Strength = Field(1.1, title="Second strength", description="Strength of the second adapter")
    stop: Stops = Field((), description=f"Texts that end the answer before them, one a line, {MAX_STOPS} at most")
    system: System = Field("", description="System prompt, in place of the base's own")
    others: Others = Field(
        "first sentence",
        title="What is read of others",
        description="What is read of what the base or other adapters answered: first sentence, all or nothing",
    )

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> Settings:
        """The settings in `values`, by field; what is missing has its default. Raises BadInput."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            name, what = str(problem["loc"][0]), problem["msg"].removeprefix("Value error, ")
            raise BadInput(_SENTENCES.get(name) or f"{cls.model_fields[name].title}: {what}.") from None

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters that answer together, none for the base."""
        return tuple(name for name in (self.adapter, self.mix) if name)

    @property
    def answerer(self) -> str:
        """The name that these adapters answer under, see Message.name: that of the first with a strength."""
        parts = (self.adapter, self.strength), (self.mix, self.mix_strength)
        return next((name for name, strength in parts if name and strength), BASE_ONLY)

    def replace(self, **changes: Any) -> Settings:
        return self.checked({**self.model_dump(), **changes})


# The page's side panel, which is kept in the browser and exported.
PANEL = tuple(Settings.model_fields)


def slider(name: str) -> dict[str, float]:
    """minimum, maximum, value and step of the page's slider for a field."""
    field = Settings.model_fields[name]
    limits = {type(limit).__name__: limit for limit in field.metadata}
    return {"minimum": limits["Ge"].ge, "maximum": limits["Le"].le, "value": field.default, **_SLIDERS[name]}


def panel_values(kept: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `kept` that the page's side panel can show, by field; seed and stop texts as their boxes' text."""
    found: dict[str, Any] = {}
    for name in PANEL:
        if name not in kept:
            continue
        try:
            value = getattr(Settings.checked({name: kept[name]}), name)
        except BadInput:
            continue
        if name in _SLIDERS:
            limits = slider(name)
            if not limits["minimum"] <= value <= limits["maximum"]:
                continue
        if name == "seed":
            value = "" if value is None else str(value)
        elif name == "stop":
            value = "\n".join(text.replace("\n", "\\n") for text in value)
        found[name] = value
    return found
