"""params.yaml as frozen, validated settings: one dataclass per section.

Every key must be present, so params.yaml always shows every setting. An unknown key, a missing key, or a value of the wrong
type or range raises a UserError that names the file, the key and what is allowed.

`python -m dfganext.settings profiles/paper.yaml` writes a profile's values into params.yaml.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, Strict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails

from dfganext.errors import UserError, one_line

RULES = ConfigDict(extra="forbid", allow_inf_nan=False)
"""Of every section. `strict` applies to each value instead: a strict section would refuse a mapping."""


def _from_yaml(value: object) -> object:
    """Convert the text 1e-4 to a float: without a decimal point, YAML 1.1 reads it as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


FROM_YAML = BeforeValidator(_from_yaml)
Integer = Annotated[int, Strict()]
Boolean = Annotated[bool, Strict()]
Text = Annotated[str, Strict(), Field(pattern=r"\S")]

Count = Annotated[Integer, Field(ge=1, le=10**9)]
Seed = Annotated[Integer, Field(ge=0, le=2**32 - 1)]
Positive = Annotated[float, Field(strict=True, gt=0), FROM_YAML]
Fraction = Annotated[float, Field(strict=True, ge=0, le=1), FROM_YAML]
PositiveFraction = Annotated[float, Field(strict=True, gt=0, le=1), FROM_YAML]
ConvnextSize = Annotated[Integer, Field(ge=32, le=2**15, multiple_of=8)]
AutoencoderSize = Annotated[Integer, Field(ge=16, le=2**15, multiple_of=8)]


@dataclass(frozen=True, config=RULES)
class Download:
    source: Literal["data", "kaggle", "huggingface", "url"]
    kaggle: Text
    huggingface: Text | None
    revision: Text | None
    url: Text | None
    sha256: Text | None
    max_megapixels: Annotated[float, Field(strict=True, gt=0, le=10_000), FROM_YAML]
    min_side: Annotated[Integer, Field(ge=2, le=2**15)]


@dataclass(frozen=True, config=RULES)
class Subsample:
    seed: Seed
    per_class: Annotated[Integer, Field(ge=4, le=10**9)] | None
    train_to_test: Positive
    validation: Annotated[float, Field(strict=True, gt=0, le=0.5), FROM_YAML]
    near_duplicate_bits: Annotated[Integer, Field(ge=0, le=128)]


@dataclass(frozen=True, config=RULES)
class Resize:
    interpolation: Literal["lanczos", "bicubic", "bilinear"]
    reencode: Boolean


@dataclass(frozen=True, config=RULES)
class Augment:
    horizontal_flip: Fraction
    vertical_flip: Fraction
    rotation: Annotated[float, Field(strict=True, ge=0, le=180), FROM_YAML]
    distortion: Fraction
    colour_jitter: Fraction


@dataclass(frozen=True, config=RULES)
class Convnext:
    architecture: Text
    weights: Text
    match: Literal["name", "order"]
    size: ConvnextSize
    epochs: Count
    batch_size: Count
    processes: Count
    lr: Positive
    lr_step: Count
    lr_gamma: PositiveFraction
    weight_decay: Annotated[float, Field(strict=True, ge=0), FROM_YAML]
    precision: Literal["auto", "float32", "bfloat16"]
    augment: Augment

    def __post_init__(self) -> None:
        if self.processes > self.batch_size:
            raise UserError(
                f"convnext.processes: {self.processes} processes cannot share batches of {self.batch_size} images; "
                "lower it, or raise convnext.batch_size."
            )


@dataclass(frozen=True, config=RULES)
class Autoencoder:
    size: AutoencoderSize
    epochs: Count
    batch_size: Count
    lr: Positive
    threshold: Positive


@dataclass(frozen=True, config=RULES)
class Robustness:
    per_class: Count | None


@dataclass(frozen=True, config=RULES)
class Face:
    x: Fraction
    y: Fraction
    width: PositiveFraction
    height: PositiveFraction


@dataclass(frozen=True, config=RULES)
class Gradcam:
    per_class: Count
    target: Literal["fake", "real", "predicted"]
    face: Face
    faithfulness: Count


@dataclass(frozen=True, config=RULES)
class Density:
    bandwidth: Annotated[float, Field(strict=True, ge=1e-6, le=1e6), FROM_YAML]


@dataclass(frozen=True, config=RULES)
class Promote:
    metric: Literal["roc_auc", "accuracy", "log_loss"]
    min_images: Count
    architectures: tuple[Text, ...]
    precision: Literal["float32", "bfloat16"]


@dataclass(frozen=True, config=RULES)
class AutoencoderRow:
    size: AutoencoderSize
    threshold: Positive


@dataclass(frozen=True, config=RULES)
class Table1:
    """The autoencoder's two rows in Table I of the paper."""

    first: AutoencoderRow
    second: AutoencoderRow


@dataclass(frozen=True, config=RULES)
class Report:
    paper: Boolean
    data: Text | None


@dataclass(frozen=True, config=RULES)
class Machine:
    """How to compute; no stage depends on these.

    workers does not change any output; device changes rounding, which training amplifies.
    """

    workers: Annotated[Integer, Field(ge=0, le=10**4)]
    device: Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, config=RULES)
class Settings:
    """All of params.yaml."""

    seed: Seed
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
    """Read and validate a params.yaml. UserError if it cannot be read, is not valid YAML, or breaks a rule."""
    path = Path(path)
    return from_mapping(_parse(_read(path), path), source=str(path))


def from_mapping(values: object, source: str = "params.yaml") -> Settings:
    """Validate a nested mapping, as read from YAML. UserError names `source` and the first wrong key."""
    try:
        return _SETTINGS.validate_python(values)
    except ValidationError as failure:
        errors = failure.errors(include_url=False, include_context=False)
        # a misspelt key is both unknown and missing: the first is what the user wrote
        first = min(errors, key=lambda error: error["type"] not in _UNKNOWN)
        raise UserError(f"{source}: {_describe(first, values)}.") from None
    except UserError as error:  # a rule about two keys
        raise UserError(f"{source}: {error}") from None


def flatten(settings: Settings) -> dict[str, Any]:
    """{"loss": "ce", "convnext.lr": 1e-4, ...}: the names that `dvc exp run -S` takes."""

    def visit(prefix: str, values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            if isinstance(value, dict):
                yield from visit(f"{prefix}{key}.", value)
            else:
                yield prefix + key, list(value) if isinstance(value, tuple) else value

    return dict(visit("", dataclasses.asdict(settings)))


def as_texts(values: Mapping[str, object]) -> dict[str, str]:
    """Flattened settings as MLflow stores them: strings unchanged, everything else as JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def apply_profile(profile: Path, params: Path) -> list[str]:
    """Write a profile's values into a params.yaml, keeping its comments and order.

    Args:
        profile: YAML with some of the keys of params.yaml.
        params: the file to change.

    Returns:
        One line per changed setting: "convnext.size: 96 -> 256".

    Raises:
        UserError: a file cannot be read or written, or the result is not valid; `params` is then unchanged.
    """
    before, text = load_settings(params), _read(params)
    changes = _parse(_read(profile), profile)
    if not isinstance(changes, dict):
        raise UserError(f"{profile}: the top level must be a mapping of keys, not {_shown(changes)}.")
    text = _merge_yaml(text, changes)
    after = flatten(from_mapping(yaml.safe_load(text), source=str(profile)))
    try:
        params.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise UserError(f"{params} cannot be written ({error.strerror}): make it writable.") from None
    return [
        f"{key}: {_shown(old)} -> {_shown(after[key])}" for key, old in flatten(before).items() if after[key] != old
    ]


def _merge_yaml(text: str, changes: Mapping[str, Any]) -> str:
    """YAML text with the values of `changes` in place of its own; the rest, comments included, stays as it is."""
    try:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError
    except ImportError:
        raise UserError("A profile needs ruamel.yaml: install it with `pip install 'df-ganext[pipeline]'`.") from None
    editor = YAML()
    editor.width = sys.maxsize  # never wrap a line
    editor.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )

    def merge(target: MutableMapping[str, Any], source: Mapping[str, Any]) -> None:
        for key, value in source.items():
            if isinstance(value, dict) and isinstance(target.get(key), dict):
                merge(target[key], value)
            else:
                target[key] = value

    try:
        document = editor.load(text)
    except YAMLError as error:  # a key that is there twice, which PyYAML accepts
        raise UserError(f"params.yaml is not valid YAML 1.2: {one_line(error)}.") from None
    merge(document, changes)
    editor.dump(document, merged := io.StringIO())
    return merged.getvalue()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: run from the repository root, or restore it with `git checkout {path}`."
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): it must be a text file.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not in UTF-8: save it in that encoding.") from None


def _parse(text: str, path: Path) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a 13th month, 5,000 digits
        raise UserError(f"{path} is not valid YAML: {one_line(error)}.") from None


_SETTINGS = TypeAdapter(Settings)
_UNKNOWN = ("unexpected_keyword_argument", "invalid_key")  # an invalid key is one that is not text
_TYPES = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "string": "a text that is not empty",
    "array": "a list of names",
    "object": "a mapping of keys",
    "null": "null",
}


def _describe(error: ErrorDetails, values: Any) -> str:
    """Pydantic's error as a sentence. What is allowed comes from the JSON schema: the error names the broken rule only."""
    schema = _SETTINGS.json_schema()
    sections, path = schema["$defs"], []
    for part in error["loc"]:
        if part not in schema.get("properties", ()):  # an unknown key, or an index in a list
            break
        path.append(part)
        schema = schema["properties"][part]
        schema = sections[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    key = ".".join(map(str, path))
    if error["type"] in _UNKNOWN:
        name = ".".join(map(str, error["loc"]))
        return f"unknown key {name}; {key or 'the top level'} takes {', '.join(schema['properties'])}"
    if error["type"] == "missing":
        return f"{key} is missing; `git show HEAD:params.yaml` shows every key"
    return f"{key or 'the top level'} must be {_allowed(schema)}, not {_shown(reduce(getitem, path, values))}"


def _allowed(schema: Mapping[str, Any]) -> str:
    """What a JSON schema allows, in words."""
    if "anyOf" in schema:
        return " or ".join(map(_allowed, schema["anyOf"]))
    if "enum" in schema:
        return "one of " + ", ".join(schema["enum"])
    low, above, high = (schema.get(name) for name in ("minimum", "exclusiveMinimum", "maximum"))
    words = [_TYPES[schema["type"]]]
    words += [] if above is None else [f"above {above:.10g}"]
    words += [] if low is None else [f"from {low:.10g}" if high is not None else f"of at least {low:.10g}"]
    words += [] if high is None else [f"to {high:.10g}" if low is not None else f"and at most {high:.10g}"]
    words += [f"and divisible by {schema['multipleOf']}"] if "multipleOf" in schema else []
    return " ".join(words)


def _shown(value: object) -> str:
    try:
        return "null" if value is None else repr(value)
    except ValueError:  # Python converts integers of up to 4,300 digits only
        return "a number of thousands of digits"


def main(arguments: list[str] | None = None) -> None:
    """The command `python -m dfganext.settings PROFILE`."""
    parser = argparse.ArgumentParser(
        prog="python -m dfganext.settings",
        description="Write a profile's values into params.yaml. Undo it with `git checkout params.yaml`.",
    )
    parser.add_argument("profile", type=Path, metavar="PROFILE", help="for example profiles/paper.yaml")
    params = Path("params.yaml")
    try:
        changes = apply_profile(parser.parse_args(arguments).profile, params)
    except UserError as error:
        sys.exit(f"error: {error}")
    print("\n".join(changes) if changes else f"{params} has these values already.")


if __name__ == "__main__":
    main()
