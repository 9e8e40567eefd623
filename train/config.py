"""What one training run is: frozen dataclasses that fail when made, and the recipe files they are read from.

Knows nothing of tensors, and of data only whether it is there.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from adapter.base.embedded import BASE, ENCODER
from adapter.errors import AdapterError, BadInput
from adapter.method.config import TuningConfig, VisionConfig

PRECISIONS = ("auto", "bf16", "fp32", "nf4", "int8")  # auto: see train.precision
INITS = ("zero", "random")
LEARN = ("all", "prompts", "tuning")
LONGEST_NAME = 40
# What Windows keeps for itself, and what the API calls the bare base.
RESERVED = {"con", "prn", "aux", "nul", "base", *(f"{p}{i}" for p in ("com", "lpt") for i in range(10))}


class ConfigError(AdapterError):
    """A recipe cannot be read or names something that does not exist."""


@dataclass(frozen=True)
class TrainConfig:
    """Hyper-parameters of one adapter. Rates are AdamW's; gates start at zero and have their own."""

    name: str
    description: str = ""
    steps: int = 0  # either these
    epochs: float = 0  # or these, for data with an end
    batch_size: int = 16  # rows of a step, over all processes
    accumulate: int = 1  # pieces that a process reads its rows in, one after the other
    lr: float = 1e-2
    gate_lr: float = 1e-2
    weight_decay: float = 0.02
    warmup: float = 0.05  # share of the steps
    clip_norm: float | None = None
    prompt_length: int = 10
    insertion_layers: int | None = None  # None: all of the base's
    init: str = "zero"  # "random": gates from N(0, 1), the ablation of arXiv 2303.16199, table 5
    prompt_std: float = 1.0  # of the prompts' normal initialisation
    prompt_norm: bool = False
    gate_activation: str = "tanh"
    template: str = "chat"
    vision: VisionConfig | None = None
    tuning: TuningConfig | None = None  # change norms and linear maps too (arXiv 2304.15010)
    learn: str = "all"  # or "prompts" (with gates and projection), or "tuning": one stage of two
    disjoint: int = (
        0  # so many of the lowest insertion layers learn from pictures only; the others, and tuning, from text
    )
    max_length: int = 512  # tokens; longer examples lose their end
    history: float = 0  # share of the single exchanges in a file that are learnt with other talk before them
    eval_every: int = 100  # steps between evaluations
    save_every: int = 0  # steps between saves; 0: at evaluations
    patience: int = 0  # evaluations without improvement after which to stop; 0: never
    held_out: int = 96  # examples in the held-out loss
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "eval_every", "max_length", "prompt_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("steps", "epochs", "save_every", "patience", "held_out", "disjoint", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("lr", "gate_lr", "prompt_std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.steps and self.epochs:
            raise ValueError("steps and epochs exclude each other: leave one of them out")
        if not (self.steps or self.epochs):
            raise ValueError("steps or epochs must be above 0: set one of them, or a preset such as preset=small")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must lie in [0, 1), got {self.warmup}")
        if not 0 <= self.history <= 1:
            raise ValueError(f"history must lie in [0, 1], got {self.history}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be above 0, got {self.clip_norm}")
        if self.learn not in LEARN:
            raise ValueError(f"learn must be one of {', '.join(LEARN)}, got {self.learn!r}")
        if self.learn == "tuning" and self.tuning is None:
            raise ValueError("learn: tuning needs a tuning to learn, such as tuning: {norms: true, bias: true}")
        if self.init not in INITS:
            raise ValueError(f"init must be one of {', '.join(INITS)}, got {self.init!r}")


@dataclass(frozen=True)
class DataConfig:
    """The files to learn from. `validation` is a share of the records to hold out, or files of their own."""

    path: str
    format: str = "auto"  # see train/formats
    images: str | None = None  # the folder that names of pictures are relative to
    validation: str | float = 0.05

    def __post_init__(self) -> None:
        if isinstance(self.validation, float) and not 0 <= self.validation < 1:
            raise ValueError(f"data.validation must lie in [0, 1) or be a path, got {self.validation}")


@dataclass(frozen=True)
class RecipeFile:
    """One run on files: what a YAML recipe holds. Everything of TrainConfig stands beside these keys."""

    data: DataConfig
    train: TrainConfig
    base: str = BASE
    precision: str = "auto"
    start_from: str | None = None  # an adapter to go on training

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")


# Settings of the published adapters (the papers, and FACTS on the released code); a recipe's own keys go first.
# `lr` is V1's 9e-3 * batch / 256 for its batch of 64.
PRESETS: dict[str, dict[str, Any]] = {
    "v1": {
        "template": "alpaca", "epochs": 5.0, "warmup": 0.4, "batch_size": 64, "lr": 2.25e-3, "gate_lr": 2.25e-3,
        "weight_decay": 0.02, "prompt_length": 10, "prompt_std": 1.0, "max_length": 512,
    },
    "v1-multimodal": {
        "template": "alpaca", "epochs": 5.0, "warmup": 0.4, "batch_size": 32, "lr": 1.1e-3, "gate_lr": 1.1e-3,
        "weight_decay": 0.02, "prompt_length": 50, "prompt_std": 1.0,
        "vision": {"projection": "global"},
    },
    "v2-captions": {
        "template": "alpaca", "epochs": 1.0, "batch_size": 64, "lr": 1e-3, "gate_lr": 1e-3, "weight_decay": 0.05,
        "prompt_length": 10, "clip_norm": 1.0, "vision": {"projection": "queries"},
    },
    "v2-instructions": {
        "template": "alpaca", "epochs": 2.0, "batch_size": 64, "lr": 1e-3, "gate_lr": 1e-3, "weight_decay": 0.02,
        "clip_norm": 1.0, "learn": "tuning", "tuning": {"norms": True, "bias": True, "scale": True},
    },
    "small": {  # what worked for bases of some hundred million parameters
        "steps": 500, "batch_size": 8, "lr": 6e-3, "gate_lr": 2e-2, "prompt_std": 0.2, "prompt_norm": True,
        "prompt_length": 16,
    },
    "quick": {  # a few dozen rows in about a minute on two cores: assets/samples/README.md has its scores
        "steps": 60, "batch_size": 8, "lr": 4e-3, "gate_lr": 5e-3, "clip_norm": 1.0, "prompt_std": 0.2,
        "prompt_norm": True, "prompt_length": 10, "history": 0.5, "eval_every": 10,
    },
}  # fmt: skip


def check_name(name: str, taken: Iterable[str] = ()) -> str:
    """The name if it can be a folder's everywhere and is nobody's yet. Raises BadInput."""
    name = name.strip()
    if not name:
        raise BadInput("The adapter needs a name, for example my-poet.")
    if len(name) > LONGEST_NAME:
        raise BadInput(f"The name has {len(name)} characters; {LONGEST_NAME} are the limit.")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise BadInput("A name has letters, digits, - and _ only, and begins with one of the first two: my-poet.")
    if name.lower() in RESERVED:
        raise BadInput(f"“{name}” means something else to the system. Choose another name.")
    if name.lower() in {other.lower() for other in taken}:
        raise BadInput(f"There is an adapter “{name}” already. Choose another name.")
    return name


def read_recipe(path: Path | None, assignments: Sequence[str], to_run: bool = False) -> RecipeFile:
    """The recipe in a YAML file, changed by `key=value` (`data.path=x` reaches into groups).

    to_run: its data must be there, and its name one that a new folder can have.
    Raises ConfigError that names the key and the nearest one that exists.
    """
    return _recipe(_assigned(_yaml(path) if path is not None else {}, assignments), path, to_run)


def recipe_text(recipe: RecipeFile) -> str:
    """The recipe as YAML that `read_recipe` reads back, without what is default."""
    outer = {
        f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe) if f.name not in ("train", "data")
    }
    inner = {f.name: getattr(recipe.train, f.name) for f in dataclasses.fields(recipe.train)}
    defaults = {f.name: f.default for cls in (RecipeFile, TrainConfig) for f in dataclasses.fields(cls)}
    found: dict[str, Any] = {"data": dataclasses.asdict(recipe.data)}
    for name, value in {**outer, **inner}.items():
        if value != defaults[name]:
            found[name] = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
    return yaml.safe_dump(found, sort_keys=False)


def changed(config: TrainConfig, assignments: Sequence[str]) -> TrainConfig:
    """`config` with some values replaced by `key=value`. Raises ConfigError."""
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return build(TrainConfig, _merged(values, _assigned({}, assignments)), "the command line")


def _assigned(found: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise ConfigError(f"'{assignment}' is not key=value. Write for example lr=0.005.")
        *groups, last = key.split(".")
        into = found
        for group in groups:
            inner = into.setdefault(group, {})
            if isinstance(inner, str) and group == "data":  # data: FILE is short for data: {path: FILE}
                inner = into[group] = {"path": inner}
            if not isinstance(inner, dict):
                raise ConfigError(f"'{key}': {group} has no keys of its own.")
            into = inner
        into[last] = _parsed(value, assignment)
    return found


def _recipe(found: dict[str, Any], path: Path | None, to_run: bool) -> RecipeFile:
    where = str(path) if path is not None else "the command line"
    preset = found.pop("preset", None)
    if preset is not None:
        if preset not in PRESETS:
            raise ConfigError(f"There is no preset '{preset}'{_nearest(str(preset), PRESETS)}.")
        found = _merged(PRESETS[preset], found)
    outer = {f.name for f in dataclasses.fields(RecipeFile)} - {"train"}
    inner = {f.name for f in dataclasses.fields(TrainConfig)}
    for key in found:
        if key not in outer | inner:
            raise ConfigError(f"{where}: unknown key '{key}'{_nearest(str(key), outer | inner | {'preset'})}.")
    if isinstance(found.get("vision"), dict):
        # The sizes are the encoder's and the base's, and put in when these are there.
        found["vision"] = {"encoder": ENCODER, "feature_size": 1, "token_size": 1, **found["vision"]}
    if isinstance(found.get("tuning"), dict):
        found["tuning"] = {"intermediate_size": 1, **found["tuning"]}
    if "data" not in found:
        raise ConfigError(f"{where}: 'data' is missing: the file or folder to learn from.")
    if isinstance(found["data"], str):
        found["data"] = {"path": found["data"]}
    found["data"] = build(DataConfig, found["data"], where, "data.")
    settings = {key: value for key, value in found.items() if key in inner}
    settings.setdefault("name", path.stem if path is not None else "adapter")
    if to_run:
        _check_run(found["data"].path, settings["name"], where)
    return build(
        RecipeFile,
        {
            **{key: value for key, value in found.items() if key in outer},
            "train": settings,
        },
        where,
    )


def _check_run(data: str, name: Any, where: str) -> None:
    """What a run needs before anything else."""
    if not os.path.exists(data):
        raise ConfigError(f"{where}: there is no file or folder '{data}'. Check the path of data.")
    try:
        check_name(str(name))
    except BadInput as error:
        raise ConfigError(f"{where}: name={name!r} cannot be used. {error}") from error


def _merged(preset: Mapping[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    merged = {**preset, **own}
    for group in ("vision", "tuning"):
        if isinstance(preset.get(group), dict) and isinstance(own.get(group), dict):
            merged[group] = {**preset[group], **own[group]}
    for one, other in (("steps", "epochs"), ("epochs", "steps")):  # one's own replaces the preset's other
        if one in own and other not in own:
            merged.pop(other, None)
    return merged


def _yaml(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The recipe '{path}' cannot be read ({error}).") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"The recipe '{path}' is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"The recipe '{path}' must hold `key: value` lines.")
    return found


def _parsed(value: str, assignment: str) -> Any:
    try:
        return yaml.safe_load(value) if value else None
    except yaml.YAMLError as error:
        raise ConfigError(f"The value of '{assignment}' cannot be read. Quote it.") from error


def _nearest(key: str, known: Mapping[str, Any] | set[str]) -> str:
    close = difflib.get_close_matches(key, sorted(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else f": choose one of {', '.join(sorted(known))}"


def build(cls: type, values: Any, where: str, group: str = "") -> Any:
    """A dataclass of a mapping. Wrong types, unknown, missing keys are ConfigErrors with where and the key."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: '{group.rstrip('.')}' must be a group of keys, got {values!r}.")
    hints = typing.get_type_hints(cls)
    made = {}
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(f"{where}: unknown key '{group}{key}'{_nearest(str(key), hints)}.")
        made[key] = _typed(hints[key], value, where, f"{group}{key}")
    for f in dataclasses.fields(cls):
        if f.default is dataclasses.MISSING and f.name not in made:
            raise ConfigError(f"{where}: '{group}{f.name}' is missing.")
    try:
        return cls(**made)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}.") from error


def _typed(hint: Any, value: Any, where: str, key: str) -> Any:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for kind in kinds:
        if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
            # The train group is flat in the file.
            return build(typing.cast(type, kind), value, where, "" if kind is TrainConfig else f"{key}.")
        if kind is float and isinstance(value, str):
            value = _number(value)  # YAML takes 1e-3 for a text
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is kind:
            return value
    wanted = " or ".join("nothing" if kind is type(None) else kind.__name__ for kind in kinds)
    raise ConfigError(f"{where}: '{key}' must be {wanted}, got {value!r}.")


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
