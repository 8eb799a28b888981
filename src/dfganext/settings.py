"""params.yaml as frozen, checked settings: one class a section, one section a stage.

A key that no class declares, a value of the wrong type or outside its range is a UserError that names the key and what
is allowed. Nothing is filled in silently: every key must be present, so params.yaml always shows the whole truth.
"""

from __future__ import annotations

import dataclasses
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from dfganext.errors import UserError

T = TypeVar("T")


def within(
    low: float | None = None, high: float | None = None, *, above: float | None = None, multiple: int | None = None
) -> Any:
    """A dataclass field whose number must satisfy low <= x <= high, x > above and be a multiple of `multiple`."""
    return field(metadata={"low": low, "high": high, "above": above, "multiple": multiple})


@dataclass(frozen=True)
class Download:
    source: Literal["data", "kaggle", "huggingface", "url"]
    kaggle: str
    huggingface: str | None
    revision: str | None
    url: str | None
    sha256: str | None
    max_megapixels: float = within(above=0)
    min_side: int = within(low=2)


@dataclass(frozen=True)
class Subsample:
    per_class: int | None = within(low=4)
    train_to_test: float = within(above=0)
    validation: float = within(above=0, high=0.5)
    near_duplicate_bits: int = within(low=0, high=31)


@dataclass(frozen=True)
class Augment:
    horizontal_flip: float = within(low=0, high=1)
    vertical_flip: float = within(low=0, high=1)
    rotation: float = within(low=0, high=180)
    distortion: float = within(low=0, high=1)
    colour_jitter: float = within(low=0, high=1)


@dataclass(frozen=True)
class Convnext:
    architecture: str
    weights: str
    size: int = within(low=32, multiple=8)
    epochs: int = within(low=1)
    batch_size: int = within(low=1)
    lr: float = within(above=0)
    lr_step: int = within(low=1)
    lr_gamma: float = within(above=0, high=1)
    weight_decay: float = within(low=0)
    precision: Literal["auto", "float32", "bfloat16"] = field()
    augment: Augment = field()


@dataclass(frozen=True)
class Autoencoder:
    size: int = within(low=16, multiple=8)
    epochs: int = within(low=1)
    batch_size: int = within(low=1)
    lr: float = within(above=0)
    threshold: float = within(above=0)


@dataclass(frozen=True)
class Gradcam:
    per_class: int = within(low=1)
    target: Literal["fake", "real", "predicted"] = field()


@dataclass(frozen=True)
class Density:
    bandwidth: float = within(above=0)


@dataclass(frozen=True)
class Promote:
    metric: Literal["roc_auc", "accuracy", "log_loss"]
    architectures: tuple[str, ...]


@dataclass(frozen=True)
class Machine:
    """How to compute, never what: no stage depends on these, because they change no output."""

    workers: int = within(low=0)
    device: Literal["auto", "cpu", "cuda"] = field()


@dataclass(frozen=True)
class Settings:
    """All of params.yaml."""

    seed: int = within(low=0, high=2**32 - 1)
    loss: Literal["ce", "bce"] = field()
    download: Download = field()
    subsample: Subsample = field()
    convnext: Convnext = field()
    autoencoder: Autoencoder = field()
    gradcam: Gradcam = field()
    density: Density = field()
    promote: Promote = field()
    machine: Machine = field()


def load(path: Path | str = "params.yaml") -> Settings:
    """Read and check a params.yaml. UserError if the file is missing, is no YAML mapping, or breaks a rule."""
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: run from the repository root, or restore it with `git checkout {path}`."
        ) from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no valid YAML: {' '.join(str(error).split())}.") from None
    return from_mapping(values, source=str(path))


def from_mapping(values: object, source: str = "params.yaml") -> Settings:
    """Check a nested mapping, as read from YAML, and freeze it. UserError names the first key that is wrong."""
    return _section(Settings, values, "", source)


def flatten(settings: Settings) -> dict[str, Any]:
    """{"loss": "ce", "convnext.lr": 1e-4, ...}: the names that `dvc exp run -S` takes."""
    flat: dict[str, Any] = {}

    def visit(prefix: str, values: dict[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, dict):
                visit(f"{prefix}{key}.", value)
            else:
                flat[prefix + key] = list(value) if isinstance(value, tuple) else value

    visit("", dataclasses.asdict(settings))
    return flat


def _section(kind: type[T], values: object, prefix: str, source: str) -> T:
    where = prefix.rstrip(".") or "the top level"
    if not isinstance(values, dict):
        raise UserError(f"{source}: {where} must be a mapping of keys, not {_shown(values)}.")
    hints = get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = [str(key) for key in values if key not in fields]
    if unknown:
        raise UserError(f"{source}: unknown key {prefix}{unknown[0]}; {where} takes {', '.join(fields)}.")
    missing = [name for name in fields if name not in values]
    if missing:
        raise UserError(f"{source}: {prefix}{missing[0]} is missing; profiles/ holds complete files to copy it from.")
    return kind(
        **{name: _value(hints[name], values[name], f"{prefix}{name}", f.metadata, source) for name, f in fields.items()}
    )


def _value(hint: Any, value: object, key: str, rules: Any, source: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _section(hint, value, f"{key}.", source)  # type: ignore[arg-type]
    origin = get_origin(hint)
    if origin is Literal:
        if not isinstance(value, str) or value not in get_args(hint):
            raise UserError(f"{source}: {key} must be one of {', '.join(get_args(hint))}, not {_shown(value)}.")
        return value
    if origin is tuple:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise UserError(f"{source}: {key} must be a list of names, not {_shown(value)}.")
        return tuple(value)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        (hint,) = (arg for arg in get_args(hint) if arg is not type(None))
        return _scalar(hint, value, key, rules, source, or_null=True)
    return _scalar(hint, value, key, rules, source)


def _scalar(hint: type, value: object, key: str, rules: Any, source: str, or_null: bool = False) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if hint is float and isinstance(value, str):
        value = _number(value)  # YAML 1.1 reads 1e-4, without a dot, as text
    if isinstance(value, bool) is not (hint is bool) or not isinstance(value, hint) or not _in_range(value, rules):
        raise UserError(
            f"{source}: {key} must be {_allowed(hint, rules)}{' or null' if or_null else ''}, not {_shown(value)}."
        )
    return value


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _in_range(value: Any, rules: Any) -> bool:
    if isinstance(value, str):
        return value.strip() != ""
    if value != value or value in (float("inf"), float("-inf")):
        return False
    return not (
        (rules.get("low") is not None and value < rules["low"])
        or (rules.get("high") is not None and value > rules["high"])
        or (rules.get("above") is not None and value <= rules["above"])
        or (rules.get("multiple") is not None and value % rules["multiple"])
    )


def _allowed(hint: type, rules: Any) -> str:
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}[hint]
    if rules.get("multiple") is not None:
        words += f" divisible by {rules['multiple']}"
    if rules.get("above") is not None:
        words += f" above {rules['above']:g}"
    if rules.get("low") is not None and rules.get("high") is not None:
        words += f" from {rules['low']:g} to {rules['high']:g}"
    elif rules.get("low") is not None:
        words += f" of at least {rules['low']:g}"
    elif rules.get("high") is not None:
        words += f", at most {rules['high']:g}"
    return words


def _shown(value: object) -> str:
    return "null" if value is None else repr(value)
