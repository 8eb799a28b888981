"""params.yaml as frozen, validated settings: one dataclass per section.

Every key must be present, so params.yaml always shows every setting. An unknown key, a missing key, or a value of the wrong
type or range raises a UserError that names the file and the key.

`python -m dfganext.settings profiles/paper.yaml` writes a profile's values into params.yaml.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, Strict, StringConstraints, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from dfganext.errors import UserError, one_line

RULES = ConfigDict(extra="forbid", allow_inf_nan=False)
"""Of every section. `strict` applies to each value instead: a strict section would refuse a mapping."""


def _from_yaml(value: object) -> object:
    """Convert the text 1e-4 to a float: without a decimal point, YAML 1.1 reads it as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


Integer = Annotated[int, Strict()]
Number = Annotated[float, Strict(), BeforeValidator(_from_yaml)]
Boolean = Annotated[bool, Strict()]
Text = Annotated[str, StringConstraints(strict=True, strip_whitespace=True, min_length=1)]

Count = Annotated[Integer, Field(ge=1, le=10**9)]
Seed = Annotated[Integer, Field(ge=0, le=2**32 - 1)]
Positive = Annotated[Number, Field(gt=0)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
PositiveFraction = Annotated[Number, Field(gt=0, le=1)]
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
    max_megapixels: Annotated[Number, Field(gt=0, le=10_000)]
    min_side: Annotated[Integer, Field(ge=2, le=2**15)]


@dataclass(frozen=True, config=RULES)
class Subsample:
    seed: Seed
    per_class: Annotated[Integer, Field(ge=4, le=10**9)] | None
    train_to_test: Positive
    validation: Annotated[Number, Field(gt=0, le=0.5)]
    near_duplicate_bits: Annotated[Integer, Field(ge=0, le=128)]


@dataclass(frozen=True, config=RULES)
class Resize:
    interpolation: Literal["lanczos", "bicubic", "bilinear"]
    reencode: Boolean


@dataclass(frozen=True, config=RULES)
class Degradation:
    """p: probability. range: lowest and highest strength."""

    p: Fraction
    range: tuple[Number, Number]


STRENGTHS = {"zoom": (0.1, 10), "rescale": (0.05, 1), "blur": (0.1, 50), "noise": (0, 128), "compression": (1, 100)}
"""Lowest and highest strength of each degradation, in its unit; see params.yaml."""


@dataclass(frozen=True, config=RULES)
class Augment:
    horizontal_flip: Fraction
    vertical_flip: Fraction
    rotation: Annotated[Number, Field(ge=0, le=180)]
    distortion: Fraction
    colour_jitter: Fraction
    zoom: Degradation
    rescale: Degradation
    blur: Degradation
    noise: Degradation
    compression: Degradation
    crop: ConvnextSize | None

    def __post_init__(self) -> None:
        for name, (lowest, highest) in STRENGTHS.items():
            low, high = getattr(self, name).range
            if not lowest <= low <= high <= highest:
                raise UserError(
                    f"convnext.augment.{name}.range: [{low:g}, {high:g}] must be two numbers from {lowest:g} to {highest:g}, the "
                    "lower first."
                )

    def size_of(self, image: int) -> int:
        """Width and height in pixels of what training reads of an image of `image` pixels: a random crop, or all of it."""
        return self.crop or image


@dataclass(frozen=True, config=RULES)
class Teacher:
    """A trained classifier to imitate, or none. strength: weight of the imitation beside the loss."""

    architecture: Text | None
    weights: Text | None
    strength: Positive

    def __post_init__(self) -> None:
        if (self.architecture is None) != (self.weights is None):
            missing = "architecture" if self.architecture is None else "weights"
            raise UserError(
                f"convnext.teacher.{missing}: a teacher needs its architecture and its weights; set both, or null for both."
            )


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
    schedule: Literal["step", "one_cycle"]
    lr_step: Count
    lr_gamma: PositiveFraction
    weight_decay: Annotated[Number, Field(ge=0)]
    average: Annotated[Number, Field(ge=0, lt=1)]
    precision: Literal["auto", "float32", "bfloat16"]
    augment: Augment
    teacher: Teacher

    def __post_init__(self) -> None:
        if self.augment.crop is not None and self.augment.crop > self.size:
            raise UserError(
                f"convnext.augment.crop: a crop of {self.augment.crop} pixels is larger than convnext.size ({self.size}); lower it."
            )
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
class OperatingPoint:
    max_error: Annotated[Number, Field(gt=0, lt=1)]
    max_novel: Annotated[Number, Field(ge=0, lt=1)]


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
    bandwidth: Annotated[Number, Field(ge=1e-6, le=1e6)]


@dataclass(frozen=True, config=RULES)
class Promote:
    metric: Literal["roc_auc", "accuracy", "log_loss"]
    min_images: Count
    architectures: list[Text]
    precision: Literal["float32", "bfloat16"]
    engine: Literal["torch", "onnxruntime", "openvino"]

    def __post_init__(self) -> None:
        if self.engine == "onnxruntime" and self.precision == "bfloat16":
            raise UserError(
                "promote.engine: onnxruntime computes in float32; set promote.precision to float32, or promote.engine to openvino."
            )


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
    """How to compute. No stage depends on these: workers changes no output, and device only rounding."""

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
    operating_point: OperatingPoint
    architectures: Annotated[list[Text], Field(min_length=1)]
    robustness: Robustness
    gradcam: Gradcam
    density: Density
    table1: Table1
    report: Report
    promote: Promote
    machine: Machine


def weights_file(weights: str | None) -> Path | None:
    """The file that `convnext.weights` or `convnext.teacher.weights` names, whether or not it exists; None for other values."""
    return None if weights in (None, "random", "imagenet") else Path(weights)


def load_settings(path: Path | str = "params.yaml") -> Settings:
    """Read and validate a params.yaml. UserError if it cannot be read, is not valid YAML, or breaks a rule."""
    return from_mapping(_read(Path(path)), source=str(path))


def from_mapping(values: object, source: str = "params.yaml") -> Settings:
    """Validate a nested mapping, as read from YAML. UserError names `source` and the first wrong key."""
    try:
        return TypeAdapter(Settings).validate_python(values)
    except ValidationError as failure:
        # a misspelt key is both unknown and missing: the first is what the user wrote
        first = min(failure.errors(), key=lambda error: error["type"] == "missing")
    except UserError as error:  # a rule about two keys
        raise UserError(f"{source}: {error}") from None
    key = ".".join(map(str, first["loc"])) or "the top level"
    if first["type"] in ("missing", "unexpected_keyword_argument"):
        problem = "missing" if first["type"] == "missing" else "unknown key"
        raise UserError(f"{source}: {key}: {problem}; `git show HEAD:params.yaml` shows every key.")
    raise UserError(f"{source}: {key}: {first['msg']}, not {_shown(first['input'])}.")


def describe(settings: Settings) -> str:
    """Architecture, initial weights, teacher, image size and loss, in a few words."""
    network = settings.convnext
    names = {"random": "random weights", "imagenet": "ImageNet weights"}
    weights = names.get(network.weights, Path(network.weights).name)
    taught = f", taught by {network.teacher.architecture}" if network.teacher.architecture else ""
    return f"{network.architecture}, {weights}{taught}, {network.size} px, loss {settings.loss}"


def flatten(settings: Settings) -> dict[str, Any]:
    """{"loss": "ce", "convnext.lr": 1e-4, ...}: the names that `dvc exp run -S` takes."""
    return dict(_flat(dataclasses.asdict(settings)))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def as_texts(values: Mapping[str, object]) -> dict[str, str]:
    """Flattened settings as MLflow stores them: strings unchanged, everything else as JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def apply_profile(profile: Path, params: Path) -> list[str]:
    """Write a profile's values into a params.yaml, keeping its comments and order.

    Args:
        profile: YAML with some of the keys of params.yaml.

    Returns:
        One line per changed setting: "convnext.size: 96 -> 256".

    Raises:
        UserError: a file cannot be read, or the result is not valid; `params` is then unchanged.
    """
    before, changes = flatten(load_settings(params)), _read(profile)
    if not isinstance(changes, dict):
        raise UserError(f"{profile}: the top level must be a mapping of keys, not {_shown(changes)}.")
    text = _merge_yaml(params.read_text(encoding="utf-8"), changes)
    after = flatten(from_mapping(yaml.safe_load(text), source=str(profile)))
    params.write_text(text, encoding="utf-8", newline="\n")
    return [f"{key}: {_shown(old)} -> {_shown(after[key])}" for key, old in before.items() if after[key] != old]


def _merge_yaml(text: str, changes: Mapping[str, Any]) -> str:
    """YAML text with the values of `changes` in place of its own; the rest, comments included, stays as it is."""
    from ruamel.yaml import YAML  # of the extra `pipeline`
    from ruamel.yaml.error import YAMLError

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


def _read(path: Path) -> Any:
    """The content of a YAML file in UTF-8."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): run from the repository root, or restore it with "
            f"`git checkout {path}`."
        ) from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: other encodings, a 13th month
        raise UserError(f"{path} is not valid YAML: {one_line(error)}.") from None


def _shown(value: object) -> str:
    """A value as in YAML: null, true, "text"."""
    return json.dumps(value, default=str, ensure_ascii=False)


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
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    print("\n".join(changes) if changes else f"{params} has these values already.")


if __name__ == "__main__":
    main()
