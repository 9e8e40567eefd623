"""The settings of a training run: frozen dataclasses checked by pydantic, and the recipes they are read from."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from adapter.base.embedded import BASE, ENCODER
from adapter.errors import AdapterError, BadInput, first_line
from adapter.method.config import Natural, Positive, PromptLength, TuningConfig, VisionConfig, check_name
from train.formats.hf_datasets import hub_id

Precision = Literal["auto", "bf16", "fp16", "fp32", "nf4", "int8"]
STATE, METRICS, DATA = "state.pt", "metrics.jsonl", "data"  # in a run's folder; the last is what the page was sent
SIZE_VARIABLE = "LLAMA_ADAPTER_FEATURES_GB"  # bounds the features of pictures that are kept on disk


class ConfigError(AdapterError):
    """A recipe cannot be read, or holds an unknown key or a value that is not allowed."""


_NO_BOOL = BeforeValidator(lambda value: str(value) if isinstance(value, bool) else value)  # Python has True == 1
Float = Annotated[float, _NO_BOOL, Field(strict=False)]  # also 1e-3, a text to YAML
AboveZero = Annotated[Float, Field(gt=0)]
_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, config=_STRICT)
class TrainConfig:
    """Hyper-parameters of one adapter. The rates are AdamW's; the gates, which start at zero, have their own."""

    name: str
    description: str = ""
    steps: Natural = 0  # either steps
    epochs: Annotated[Float, Field(ge=0, le=10_000)] = 0  # or epochs, for data of a known length
    batch_size: Positive = 16  # rows per step, over all processes
    accumulate: Positive = 1  # micro-batches that a process splits its rows into
    lr: AboveZero = 1e-2
    gate_lr: AboveZero = 1e-2
    tuning_lr: AboveZero | None = None  # of the tuning, where it differs from lr
    weight_decay: Annotated[Float, Field(ge=0)] = 0.02
    warmup: Annotated[Float, Field(ge=0, lt=1)] = 0.05  # share of the steps
    clip_norm: AboveZero | None = None
    # Decay per step of an exponential moving average of what is trained, which is evaluated and saved; 0: none.
    average: Annotated[Float, Field(ge=0, lt=1)] = 0
    prompt_length: PromptLength = 10
    insertion_layers: int | None = None  # the topmost; None: all of the base's; -2: all but the lowest 2
    init: Literal["zero", "random"] = "zero"  # random: gates from N(0, 1), arXiv 2303.16199, table 5
    prompt_std: AboveZero = 1.0  # of the prompts' normal initialisation
    prompt_norm: bool = False
    gate_activation: Literal["tanh", "identity"] = "tanh"
    template: Literal["chat", "alpaca", "raw"] = "chat"  # not set, and the base has no chat template: alpaca
    form: str | None = None  # a grammar that the adapter's answers are held to when it is served
    vision: VisionConfig | None = None
    tuning: TuningConfig | None = None  # also train norms and linear maps (arXiv 2304.15010)
    learn: Literal["all", "prompts", "tuning"] = "all"  # prompts: with gates and projection, all but the tuning
    max_length: Positive = 512  # tokens; longer examples are truncated
    history: Annotated[Float, Field(ge=0, le=1)] = 0  # share of single-turn records trained with earlier turns
    # This many rows of the base's own text for each row of the data, trained to leave its distribution as it is.
    keep: Annotated[Float, Field(ge=0, lt=1)] = 0
    eval_every: Positive = 100  # steps between evaluations
    save: Literal["best", "last"] = "best"  # the adapter that the run ends with: of lowest held-out loss, or last
    save_every: Natural = 0  # steps between saves of what --resume needs; 0: at each evaluation
    checkpoint_every: Natural = 0  # steps between numbered adapters that are kept; 0: none
    patience: Natural = 0  # evaluations without improvement before stopping; 0: never
    held_out: Natural = 96  # examples in the held-out loss
    gradient_checkpointing: bool = False  # computes activations again in backward: less memory, more time
    tracker: str = "none"  # one of accelerate's, such as tensorboard or wandb
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @model_validator(mode="after")
    def _check_pairs(self) -> TrainConfig:
        if self.steps and self.epochs:
            raise ValueError("steps and epochs exclude each other: leave one of them out")
        if not (self.steps or self.epochs):
            raise ValueError("steps or epochs must be above 0: set one of them, or a preset such as preset=small")
        if self.tuning_lr is not None and self.learn == "prompts":
            raise ValueError("tuning_lr has no meaning for learn: prompts, which trains no tuning: leave one out")
        if self.vision is not None:
            projection = self.vision.projection
            unused = _UNUSED_BY.get(projection, set()) & _settings(self.vision).keys()
            if unused:
                keys = ", ".join(f"vision.{key}" for key in sorted(unused))
                raise ValueError(f"{keys} has no meaning for vision.projection '{projection}'")
        return self

    def layers_of(self, base_layers: int) -> int:
        """The number of insertion layers in a base of `base_layers` layers. Raises ConfigError."""
        count = self.insertion_layers
        layers = base_layers if count is None else base_layers + count if count < 0 else count
        if not 1 <= layers <= base_layers:
            raise ConfigError(f"insertion_layers {count} would be {layers} of {base_layers}. Change it.")
        return layers


@dataclass(frozen=True, config=_STRICT)
class DataConfig:
    """Records to learn from. path: a file, a folder, or the id of a data set on the Hub (`hf:user/name`).
    validation: the share to hold out, another file, or a split. weight: how often each record comes in an epoch.
    """

    path: str
    split: str | None = None  # of data that has several; None: train
    config: str | None = None  # of a data set that has several
    format: str = "auto"  # a key of train.formats.FORMATS
    images: str | None = None  # the folder that image paths are relative to
    validation: Annotated[Annotated[Float, Field(ge=0, lt=1)] | str, Field(union_mode="left_to_right")] = 0.05
    weight: Annotated[Float, Field(gt=0, le=1000)] = 1.0


@dataclass(frozen=True, config=_STRICT)
class RecipeFile:
    """A run on files. A YAML recipe holds the fields of TrainConfig at the top level, beside these."""

    data: tuple[DataConfig, ...]  # one, or the parts of a mixture; none if the recipe makes its examples itself
    train: TrainConfig
    base: str = BASE
    precision: Precision = "auto"
    start_from: str | None = None  # an adapter to continue training
    # The preset whose settings `train` holds where the recipe states no others.
    preset: str | None = dataclasses.field(default=None, compare=False)
    # The settings that the recipe states itself, such as "lr" or "vision.hidden": neither defaults nor a preset's.
    stated: frozenset[str] = dataclasses.field(default=frozenset(), compare=False)

    @model_validator(mode="after")
    def _check_stages(self) -> RecipeFile:
        if self.train.learn == "tuning" and self.start_from is None:
            trained = "learn: tuning trains a tuning beside prompts that have been trained"
            raise ValueError(f"{trained}: name their adapter by start_from, or train both with learn: all")
        if self.train.learn == "prompts" and self.train.tuning is not None and self.start_from is None:
            raise ValueError("learn: prompts leaves the tuning untrained: leave tuning out, or learn: all")
        return self


@cache
def presets() -> dict[str, Any]:
    """All presets by name: the settings that `preset=NAME` stands for, and the source of their figures."""
    return yaml.safe_load(Path(__file__).with_name("presets.yaml").read_text(encoding="utf-8"))


def describe_preset(name: str) -> str:
    """What a preset sets, and where that comes from."""
    settings = flatten(presets()[name]["settings"])
    listed = ", ".join(f"{key} {yaml.safe_dump(value).partition(chr(10))[0]}" for key, value in settings.items())
    return f"preset {name}: {presets()[name]['source']}\n  sets {listed}, where the recipe states nothing else"


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Keys of groups joined by dots: {"vision": {"hidden": 3}} -> {"vision.hidden": 3}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def read_recipe(path: Path | None, assignments: Sequence[str]) -> RecipeFile:
    """Reads a YAML recipe and applies `key=value` assignments (`data.path=x`). Raises ConfigError."""
    where = path.name if path is not None else "the command line"
    values = _assign(_read_yaml(path) if path is not None else {}, assignments)
    try:
        json.dumps(values, default=str)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{where}: a key is no text, or a group contains itself. Write keys as text.", first_line(error)
        ) from error
    stated = sorted(flatten(values))
    preset = values.get("preset")
    if preset is not None:
        if not isinstance(preset, str) or preset not in presets():
            raise ConfigError(f"There is no preset '{preset}'{_nearest(str(preset), presets())}")
        values = _merge(presets()[preset]["settings"], values)
    outer, inner = ({field.name for field in dataclasses.fields(cls)} for cls in (RecipeFile, TrainConfig))
    known = (outer | inner) - {"train", "stated"}
    for key in values:
        if key not in known:
            raise ConfigError(f"{where}: unknown key '{key}'{_nearest(str(key), known)}")
    # Sizes that follow from the encoder and the base; run_setup fills them in once both are loaded.
    vision, tuning = {"encoder": ENCODER, "feature_size": 1, "token_size": 1}, {"intermediate_size": 1}
    sizes: dict[str, dict[str, Any]] = {"vision": vision, "tuning": tuning}
    if isinstance(given := values.get("vision"), dict) and given.get("projection") == "label":
        more = "choose 'global' or 'queries', or leave it out where start_from names such an adapter."
        raise ConfigError(f"vision.projection 'label' needs names of its own: {more}")
    values |= {key: {**sizes[key], **values[key]} for key in sizes if isinstance(values.get(key), dict)}
    if "data" in values:
        parts = values["data"] if isinstance(values["data"], list) else [values["data"]]
        values["data"] = [{"path": part} if isinstance(part, str) else part for part in parts]
    values.setdefault("name", path.stem if path is not None else "adapter")
    recipe = {key: values[key] for key in values if key in outer}
    recipe |= {"train": {key: values[key] for key in values if key in inner}, "stated": stated}
    # As JSON, because only there does pydantic's strict mode take an object for a dataclass.
    try:
        return TypeAdapter(RecipeFile).validate_json(json.dumps(recipe, default=str))
    except ValidationError as error:
        raise ConfigError(f"{where}: {_sentence(error)}", str(path or "")) from error


def check_run(recipe: RecipeFile) -> None:
    """Raises ConfigError if data that the recipe names is not there, or its name cannot be that of a folder."""
    if not recipe.data:
        raise ConfigError("data names no file.")
    for path in (part.path for part in recipe.data):
        if hub_id(path) is None and not os.path.exists(path):
            raise ConfigError(f"There is no file or folder '{Path(path).name}'. Check the path of data.", path)
    try:
        check_name(recipe.train.name)
    except BadInput as error:
        raise ConfigError(f"name={recipe.train.name!r} cannot be used. {error}") from error


def recipe_text(recipe: RecipeFile) -> str:
    """The recipe as YAML that `read_recipe` reads back; default values and sizes that follow are left out."""
    parts = [_settings(part) for part in recipe.data]
    text: dict[str, Any] = {"data": parts[0] if len(parts) == 1 else parts}
    for config in (recipe, recipe.train):
        text |= {key: value for key, value in _settings(config).items() if key not in _NOT_WRITTEN}
    if recipe.start_from is not None and (vision := recipe.train.vision):  # the rest is the adapter's, no settings
        text["vision"] = {"looks": vision.looks, "beyond": vision.beyond}
    return yaml.safe_dump(text, sort_keys=False)


def _settings(config: Any) -> dict[str, Any]:
    """The fields that have not their default value, groups likewise."""
    values = {field.name: (getattr(config, field.name), field.default) for field in dataclasses.fields(config)}
    return {
        name: _settings(value) if dataclasses.is_dataclass(value) else value
        for name, (value, default) in values.items()
        if value != default and name not in DERIVED
    }


def _sentence(error: ValidationError) -> str:
    """One line about the first problem: which key, what is allowed and what was given. Unknown keys come first."""
    problems = error.errors()
    unknown = [problem for problem in problems if problem["type"] == "unexpected_keyword_argument"]
    problem = (unknown or problems)[0]
    place = [part for part in problem["loc"] if isinstance(part, str)]  # numbers are those of a mixture's parts
    if problem["type"] == "value_error":
        within = "".join(f"{part}: " for part in place if part in ("vision", "tuning"))
        return f"{within}{problem['ctx']['error']}."
    # It ends in the member of a union that was tried.
    keys = place[: next((i for i, part in enumerate(place, 1) if part not in _GROUPS), None)]
    name = ".".join(key for key in keys if key != "train")
    if unknown:
        group = _GROUPS[keys[-2]] if len(keys) > 1 else RecipeFile
        return f"unknown key '{name}'{_nearest(keys[-1], (field.name for field in dataclasses.fields(group)))}"
    if problem["type"] == "missing":
        return f"'{name}' is missing."
    allowed = [
        "a group of keys" if p["type"] == "dataclass_type" else p["msg"].removeprefix("Input should be ")
        for p in problems
        if [part for part in p["loc"] if isinstance(part, str)][: len(keys)] == keys
    ]
    return f"'{name}' must be {' or '.join(dict.fromkeys(allowed))}, got {problem['input']!r}."


# Settings of `vision` that the other projections do without.
_UNUSED_BY: dict[str, set[str]] = {"global": {"projected", "width", "blocks", "heads"}, "queries": {"hidden"}}
DERIVED = frozenset({
    "feature_size", "token_size", "intermediate_size", "num_classes", "num_kinds", "name_length", "num_facts",
    "fact_size", "certainty",
})  # fmt: skip
_NOT_WRITTEN = {"data", "train", "preset", "stated"}
# Names of groups of keys in locations; TrainConfig's keys stand at the top level of a recipe.
_GROUPS = {"train": TrainConfig, "data": DataConfig, "vision": VisionConfig, "tuning": TuningConfig}


def _assign(values: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    # A group before its keys, which `data=FILE` would replace; `vision=` takes one away where it stands.
    for assignment in sorted(assignments, key=lambda one: "." in one.partition("=")[0] or one.endswith("=")):
        key, _, value = assignment.partition("=")
        *groups, last = key.split(".")
        target = values
        for group in groups:
            inner = target.setdefault(group, {})
            if isinstance(inner, str) and group == "data":  # data: FILE is short for data: {path: FILE}
                inner = target[group] = {"path": inner}
            if not isinstance(inner, dict):
                raise ConfigError(f"'{key}': {group} has no keys of its own.")
            target = inner
        try:
            loaded = yaml.safe_load(value) if value else None
            # A text as it was typed: YAML ends one at " #", and takes one with ": " for a group of keys.
            is_text = isinstance(loaded, str | dict) and value[0] not in "\"'{"
            target[last] = value if is_text else loaded
        except yaml.YAMLError as error:
            raise ConfigError(f"The value of '{assignment}' cannot be read. Quote it or rename a file.") from error
    return values


def _merge(defaults: Mapping[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    groups = {key: defaults.get(key) for key, value in own.items() if isinstance(value, dict)}
    merged = {**defaults, **own} | {key: {**(group or {}), **own[key]} for key, group in groups.items()}
    if ("steps" in own) != ("epochs" in own):  # the recipe's steps replace the preset's epochs, or the reverse
        merged.pop("epochs" if "steps" in own else "steps", None)
    return merged


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [str(pair[0].value) for pair in node.value if isinstance(pair, tuple)]
        if twice := [key for key in keys if keys.count(key) > 1]:  # YAML forbids it, and PyYAML takes the last
            raise yaml.YAMLError(f"'{twice[0]}' stands there twice")
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        text = f"The recipe '{path.name}' cannot be read as YAML. Check the path, or mend it."
        raise ConfigError(text, f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"The recipe '{path.name}' must hold `key: value` lines.", str(path))
    return values


def _nearest(key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, sorted(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else f": choose one of {', '.join(sorted(known))}."
