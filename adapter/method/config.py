"""An adapter's configuration: frozen dataclasses, checked by pydantic, that are written to `config.json`."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform, get_args

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from adapter.errors import BadInput, LoadError

CONFIG, WEIGHTS, CARD = "config.json", "adapter.safetensors", "README.md"  # the files of an adapter
GateActivation = Literal["tanh", "identity"]
Template = Literal["chat", "alpaca", "raw"]
GATE_ACTIVATIONS, TEMPLATES = get_args(GateActivation), get_args(Template)
MAX_FORM_BYTES = 16 * 2**10  # of UTF-8; rules that refer to one another end the process where they are far deeper
MAX_BLOCKS = 64  # of visual queries, which are built before their weights are read
MAX_NAME_LENGTH = 40  # characters of an adapter's name
KIND_LENGTH = 3  # tokens that the word for a kind of thing may take in a `label` projection
# Names that Windows reserves, and those of the bare base in the API and of labels of /metrics.
RESERVED_NAMES = {"base", "mix", "other", "con", "prn", "aux", "nul"}
RESERVED_NAMES |= {f"{port}{i}" for port in ("com", "lpt") for i in range(10)}


class InvalidConfig(LoadError, ValueError):
    """A value of a configuration is wrong; the text says which, and why."""


def check_name(name: str, taken: Iterable[str] = ()) -> str:
    """Returns the stripped name if it is a valid folder name on every system and not taken. Raises BadInput."""
    name = name.strip()
    if len(name) > MAX_NAME_LENGTH:
        raise BadInput(f"The name has {len(name)} characters; {MAX_NAME_LENGTH} are the limit.")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise BadInput("A name has letters, digits, - and _ only, and begins with one of the first two: my-poet.")
    if name.lower() in RESERVED_NAMES:
        raise BadInput(f"“{name}” means something else to the system. Choose another name.")
    if name.lower() in {other.lower() for other in taken}:
        raise BadInput(f"There is an adapter “{name}” already. Choose another name.")
    return name


Positive = Annotated[int, Field(ge=1)]
PromptLength = Annotated[int, Field(ge=1, le=1024)]
Natural = Annotated[int, Field(ge=0)]
Line = Annotated[str, Field(pattern=r"^[^\p{C}\p{Zl}\p{Zp}]*$")]  # it stands in messages
Patterns = Annotated[str, Field(max_length=MAX_FORM_BYTES)]  # every question is compared with each
T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def _checked(cls: type[T]) -> type[T]:
    """A frozen dataclass whose constructor raises InvalidConfig: one sentence, about the first wrong field."""
    made: Any = dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))(cls)
    construct = made.__init__

    def __init__(self: Any, *values: Any, **named: Any) -> None:
        try:
            construct(self, *values, **named)
        except ValidationError as error:
            raise InvalidConfig(_sentence(error)) from error

    made.__init__ = __init__
    return made


def _sentence(error: ValidationError) -> str:
    """What is wrong with the first wrong field, by its name. Escaped: it may be a stranger's."""
    problem = error.errors()[0]
    if problem["type"] == "value_error":  # of a __post_init__
        return str(problem["ctx"]["error"])
    name = "".join(f"{ascii(part)[1:-1]}." for part in problem["loc"])[:-1]
    return (f"{name}: " if name else "") + f"{problem['msg']}, got {ascii(problem['input'])[:80]}"


def _at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise InvalidConfig(f"{name} must be at least {least}, got {value}")


def base_label(name: str) -> str:
    """What fingerprints and messages call the base `name`: of a path on a machine only its last part."""
    is_path = re.match(r"[/\\~.]|[A-Za-z]:[/\\]", name) or name.count("/") > 1
    return (re.split(r"[/\\]", name.rstrip("/\\"))[-1] if is_path else name) or name


@_checked
class BaseFingerprint:
    """Which frozen model an adapter was made for.

    The sizes and `tokenizer` (a hash of the vocabulary) must match; `weights` (a hash of the last
    norm) only warns, in AdapterStore.
    """

    name: Line
    hidden_size: Positive
    num_hidden_layers: Positive
    num_attention_heads: Positive
    num_key_value_heads: Positive
    head_dim: Positive
    vocab_size: Positive
    tokenizer: Line = ""
    weights: Line = ""

    def differences(self, base: BaseFingerprint) -> list[str]:
        """Sentences on why an adapter with this fingerprint cannot run on `base`; empty if it can."""
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(base)
        sizes = [name for name in mine if name not in ("name", "tokenizer", "weights")]
        found = [f"{name} {mine[name]} instead of {theirs[name]}" for name in sizes if mine[name] != theirs[name]]
        if self.tokenizer and base.tokenizer and self.tokenizer != base.tokenizer:
            found.append("another tokenizer")
        return found


@_checked
class VisionConfig:
    """The frozen image encoder and the trained projection of its features.

    `projection` is `global` (multi-scale global features -> MLP -> one vector added to every prompt of all
    insertion layers, equations 9 and 10 of arXiv 2303.16199), `label` (the encoder's class posterior
    spelled in the base's own hidden states, and an MLP beside it: see `method.label_projection`) or `queries`
    (as many learned visual queries as there are prompts look at all of the encoder's tokens: arXiv 2304.15010,
    whose release has width 768, 8 blocks and 16 heads).
    """

    encoder: Line
    projection: Literal["global", "label", "queries"] = "global"
    channels: Literal["RGB", "BGR"] = "RGB"  # their order in the encoder's input
    feature_size: int = 0  # width of the concatenated multi-scale features; `global` and `label`
    hidden: int = 512  # of the MLP; `global` and `label`
    num_classes: int = 0  # of the encoder and further concepts, that have names; `label` only
    num_kinds: int = 0  # common words over groups of names; `label` only
    name_length: int = 0  # tokens a name may take; `label` only
    name_states: bool = False  # names as the base's hidden states, layer by layer; always, in a `label` projection
    num_facts: Natural = 0  # questions that linear heads on the features answer by a word; `label` only
    fact_size: int = 0  # words that a head chooses from, at most
    certainty: bool = False  # a word says how sure the names are; always, in a `label` projection
    token_size: int = 0  # width of the encoder's tokens; `queries` only, like the rest
    projected: bool = False  # tokens have passed the encoder's own head, as CLIP's do in V2
    width: int = 192  # in which queries and tokens meet
    blocks: int = 2
    heads: int = 6
    # Patterns as in `fnmatch`, one a line, in lower case. looks: of questions for which the adapter looks at the
    # picture (none: all); beyond: of questions about the picture that the adapter cannot answer.
    looks: Patterns = ""
    beyond: Patterns = ""

    def __post_init__(self) -> None:
        if self.projection == "queries":
            _at_least(1, token_size=self.token_size, width=self.width, blocks=self.blocks, heads=self.heads)
            if self.blocks > MAX_BLOCKS:
                raise InvalidConfig(f"blocks must be at most {MAX_BLOCKS}, got {self.blocks}")
            if self.width % self.heads:
                raise InvalidConfig(f"width must be a multiple of heads {self.heads}, got {self.width}")
        else:
            _at_least(1, feature_size=self.feature_size, hidden=self.hidden)
        if self.projection == "label":
            _at_least(2, num_classes=self.num_classes)  # a picture gets the likeliest name and the next
            _at_least(1, num_kinds=self.num_kinds, name_length=self.name_length)
            _at_least(1, num_facts=self.num_facts, fact_size=self.fact_size)
            for name, most in {"num_classes": 2**15, "name_length": 16, "num_facts": 16}.items():
                if getattr(self, name) > most:  # a small file would take gigabytes beside a picture
                    raise InvalidConfig(f"{name} must be at most {most}, got {getattr(self, name)}")
            if not (self.name_states and self.certainty):
                raise InvalidConfig("name_states and certainty must be true for a label projection")

    def asks_to_look(self, question: str) -> bool | None:
        """Whether the adapter looks at the picture for a question; None for one that it cannot answer."""
        text = " ".join(question.lower().replace("’", "'").split()).strip(" .!?…。！？")[:200]
        fits = [any(fnmatchcase(text, p) for p in lines.splitlines()) for lines in (self.beyond, self.looks)]
        return None if fits[0] else fits[1] or not self.looks

    @property
    def spelled_length(self) -> int:
        """Prompts that a `label` projection spells: two names, a kind, the facts and how sure the names are."""
        return 2 * self.name_length + KIND_LENGTH + self.num_facts + 1

    @property
    def encoding(self) -> dict[str, Any]:
        """Keyword arguments of `VisualEncoder.encode`."""
        return {"tokens": self.projection == "queries", "projected": self.projected, "channels": self.channels}


@_checked
class TuningConfig:
    """What an adapter of the V2 family (arXiv 2304.15010) changes in its layers beside the attention."""

    intermediate_size: Positive  # of the base's MLPs
    norms: bool = False
    bias: bool = False  # of linear maps, with `scale` equation 5 of V2
    scale: bool = False
    lora_rank: Natural = 0
    layers: Natural = 0  # the topmost so many are changed; 0: all of the base's, as in V2

    def __post_init__(self) -> None:
        if not (self.norms or self.bias or self.scale or self.lora_rank):
            raise InvalidConfig("tuning must change something: norms, bias, scale or lora_rank")

    @property
    def kinds(self) -> str:
        """What is changed, for a card."""
        kinds = {f"LoRA of rank {self.lora_rank}": self.lora_rank, "norms": self.norms}
        kinds |= {"biases": self.bias, "scales": self.scale}
        return ", ".join(kind for kind, used in kinds.items() if used)


@_checked
class AdapterConfig:
    """Everything about an adapter except its weights; `config.json` holds exactly these fields."""

    base: BaseFingerprint
    prompt_length: PromptLength = 10
    insertion_layers: Positive = 30  # the topmost L of the base's layers
    gate_activation: GateActivation = "tanh"
    prompt_norm: bool = False  # pass prompts through the layer's frozen input_layernorm before k_proj, v_proj
    template: Template = "chat"
    description: str = ""
    form: str | None = None  # a grammar that the answers belong to, see `serve.form`
    vision: VisionConfig | None = None
    tuning: TuningConfig | None = None
    format_version: Literal[1] = 1

    def __post_init__(self) -> None:
        total, tuned = self.base.num_hidden_layers, 0 if self.tuning is None else self.tuning.layers
        for name, layers in (("insertion_layers", self.insertion_layers), ("tuning.layers", tuned)):
            if layers > total:
                raise InvalidConfig(f"{name} must be at most the base's {total}, got {layers}")
        if self.vision is not None and self.vision.projection == "label":
            taken = self.vision.spelled_length
            if self.prompt_length <= taken:
                raise InvalidConfig(
                    f"prompt_length must be more than {taken} for a label projection with names of "
                    f"{self.vision.name_length} tokens, got {self.prompt_length}"
                )
        form = self.form
        if form is not None and not (form.strip() and len(form.encode(errors="replace")) <= MAX_FORM_BYTES):
            raise InvalidConfig(f"form must be null, or have at most {MAX_FORM_BYTES} bytes and not be empty")

    @property
    def is_visual(self) -> bool:
        return self.vision is not None

    @property
    def layers(self) -> range:
        """Indices of the insertion layers, lowest first."""
        total = self.base.num_hidden_layers
        return range(total - self.insertion_layers, total)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> AdapterConfig:
        """Parse `config.json`. Raises LoadError that names `where` and the wrong field."""
        try:
            return TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            raise LoadError(
                f"{where}: config.json is not an adapter configuration ({_sentence(error)[:300]}). "
                "Download or train the adapter again."
            ) from error
