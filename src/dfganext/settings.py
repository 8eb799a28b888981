"""params.yaml as frozen, checked settings: one class a section, one section a stage.

A key that no class declares, a value of the wrong type or outside its range is a UserError that names the key and what
is allowed. Nothing is filled in silently: every key must be present, so params.yaml always shows the whole truth.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from dfganext.errors import UserError, one_line

T = TypeVar("T")


@dataclass(frozen=True)
class Within:
    """A range of numbers: low <= x <= high, x > above, x divisible by multiple; None where there is no such rule."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    multiple: int | None = None

    def admits(self, value: float) -> bool:
        return (
            abs(value) <= sys.float_info.max  # not infinite, not NaN, and no whole number beyond float
            and (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.multiple is None or value % self.multiple == 0)
        )

    def __str__(self) -> str:
        words = [] if self.multiple is None else [f"divisible by {self.multiple}"]
        words += [] if self.above is None else [f"above {self.above:.10g}"]
        words += [] if self.low is None else [f"from {self.low:.10g}" if self.high else f"of at least {self.low:.10g}"]
        words += (
            [] if self.high is None else [f"to {self.high:.10g}" if self.low is not None else f"up to {self.high:.10g}"]
        )
        return " ".join(words)


Count = Annotated[int, Within(low=1)]
Positive = Annotated[float, Within(above=0)]
Fraction = Annotated[float, Within(low=0, high=1)]


@dataclass(frozen=True)
class Download:
    source: Literal["data", "kaggle", "huggingface", "url"]
    kaggle: str
    huggingface: str | None
    revision: str | None
    url: str | None
    sha256: str | None
    max_megapixels: Annotated[float, Within(above=0, high=10_000)]
    min_side: Annotated[int, Within(low=2)]


@dataclass(frozen=True)
class Subsample:
    seed: Annotated[int, Within(low=0, high=2**32 - 1)]
    per_class: Annotated[int, Within(low=4)] | None
    train_to_test: Positive
    validation: Annotated[float, Within(above=0, high=0.5)]
    near_duplicate_bits: Annotated[int, Within(low=0, high=128)]


@dataclass(frozen=True)
class Resize:
    interpolation: Literal["lanczos", "bicubic", "bilinear"]
    reencode: bool


@dataclass(frozen=True)
class Augment:
    horizontal_flip: Fraction
    vertical_flip: Fraction
    rotation: Annotated[float, Within(low=0, high=180)]
    distortion: Fraction
    colour_jitter: Fraction


@dataclass(frozen=True)
class Convnext:
    architecture: str
    weights: str
    match: Literal["name", "order"]
    size: Annotated[int, Within(low=32, multiple=8)]
    epochs: Count
    batch_size: Count
    processes: Count
    lr: Positive
    lr_step: Count
    lr_gamma: Annotated[float, Within(above=0, high=1)]
    weight_decay: Annotated[float, Within(low=0)]
    precision: Literal["auto", "float32", "bfloat16"]
    augment: Augment

    def __post_init__(self) -> None:
        if self.processes > self.batch_size:
            raise UserError(
                f"convnext.processes: {self.processes} processes cannot share batches of {self.batch_size} images; lower it, "
                "or raise convnext.batch_size."
            )


@dataclass(frozen=True)
class Autoencoder:
    size: Annotated[int, Within(low=16, multiple=8)]
    epochs: Count
    batch_size: Count
    lr: Positive
    threshold: Positive


@dataclass(frozen=True)
class Robustness:
    per_class: Count | None


@dataclass(frozen=True)
class Face:
    x: Fraction
    y: Fraction
    width: Annotated[float, Within(above=0, high=1)]
    height: Annotated[float, Within(above=0, high=1)]


@dataclass(frozen=True)
class Gradcam:
    per_class: Count
    target: Literal["fake", "real", "predicted"]
    face: Face
    faithfulness: Count


@dataclass(frozen=True)
class Density:
    bandwidth: Annotated[float, Within(low=1e-6, high=1e6)]


@dataclass(frozen=True)
class Promote:
    metric: Literal["roc_auc", "accuracy", "log_loss"]
    min_images: Count
    architectures: tuple[str, ...]
    precision: Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class AutoencoderRow:
    size: Annotated[int, Within(low=16, multiple=8)]
    threshold: Positive


@dataclass(frozen=True)
class Table1:
    """The two rows that the paper's Table I has for the autoencoder."""

    first: AutoencoderRow
    second: AutoencoderRow


@dataclass(frozen=True)
class Report:
    paper: bool
    data: str | None


@dataclass(frozen=True)
class Machine:
    """How to compute; no stage depends on these.

    workers changes no bit of any output; device changes rounding, which training amplifies.
    """

    workers: Annotated[int, Within(low=0)]
    device: Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Settings:
    """All of params.yaml."""

    seed: Annotated[int, Within(low=0, high=2**32 - 1)]
    loss: Literal["ce", "bce"]
    download: Download
    subsample: Subsample
    resize: Resize
    convnext: Convnext
    autoencoder: Autoencoder
    robustness: Robustness
    gradcam: Gradcam
    density: Density
    table1: Table1
    report: Report
    promote: Promote
    machine: Machine


def weights_file(weights: str) -> Path | None:
    """The file that `convnext.weights` names, whether or not it exists; None for "random" and "imagenet"."""
    return None if weights in ("random", "imagenet") else Path(weights)


def load_settings(path: Path | str = "params.yaml") -> Settings:
    """Read and check a params.yaml. UserError if the file cannot be read, is no YAML mapping, or breaks a rule."""
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: run from the repository root, or restore it with `git checkout {path}`."
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): it must be a text file.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not in UTF-8: save it in that encoding.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a 13th month, 5,000 digits
        raise UserError(f"{path} is no valid YAML: {one_line(error)}.") from None
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


def as_texts(values: Mapping[str, object]) -> dict[str, str]:
    """Flattened settings as MLflow keeps them: text as it is, all else as JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def _section(kind: type[T], values: object, prefix: str, source: str) -> T:
    where = prefix.rstrip(".") or "the top level"
    if not isinstance(values, dict):
        raise UserError(f"{source}: {where} must be a mapping of keys, not {_shown(values)}.")
    hints = get_type_hints(kind, include_extras=True)
    unknown = [str(key) for key in values if key not in hints]
    if unknown:
        raise UserError(f"{source}: unknown key {prefix}{unknown[0]}; {where} takes {', '.join(hints)}.")
    missing = [name for name in hints if name not in values]
    if missing:
        raise UserError(f"{source}: {prefix}{missing[0]} is missing; profiles/ holds complete files to copy it from.")
    return kind(**{name: _value(hint, values[name], f"{prefix}{name}", source) for name, hint in hints.items()})


def _value(hint: Any, value: object, key: str, source: str, suffix: str = "") -> Any:
    if dataclasses.is_dataclass(hint):
        return _section(hint, value, f"{key}.", source)  # type: ignore[arg-type]
    rule = Within()
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        (hint,) = (arg for arg in get_args(hint) if arg is not type(None))
        return _value(hint, value, key, source, " or null")
    if origin is Annotated:
        hint, rule = get_args(hint)
    if origin is Literal:
        allowed, good = "one of " + ", ".join(get_args(hint)), value in get_args(hint)
    elif origin is tuple:
        allowed, good = "a list of names", isinstance(value, list) and all(isinstance(item, str) for item in value)
        value = tuple(value) if isinstance(value, list) else value
    elif hint is bool:
        allowed, good = "true or false", isinstance(value, bool)
    elif hint is str:
        allowed, good = "a text", isinstance(value, str) and value.strip() != ""
    else:
        value = _as_float(value) if hint is float else value
        allowed = f"{'a whole number' if hint is int else 'a number'} {rule}".rstrip()
        good = isinstance(value, int | float) and type(value) is hint and rule.admits(value)
    if not good:
        raise UserError(f"{source}: {key} must be {allowed}{suffix}, not {_shown(value)}.")
    return value


def _as_float(value: object) -> object:
    """Whole numbers, and texts like 1e-4 that YAML 1.1 takes for text for want of a dot, as float; all else as it is."""
    if type(value) in (int, str):
        try:
            return float(value)  # type: ignore[arg-type]
        except (ValueError, OverflowError):
            pass
    return value


def _shown(value: object) -> str:
    try:
        return "null" if value is None else repr(value)
    except ValueError:  # Python writes no more than 4,300 digits
        return "a number of thousands of digits"
