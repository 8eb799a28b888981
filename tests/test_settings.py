"""Settings: params.yaml is read whole, and what is wrong in it is named."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from dfganext import settings
from dfganext.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
FILES = ["params.yaml", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "profiles").glob("*.yaml"))]


@pytest.fixture
def values() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "params.yaml").read_text())


def changed(values: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    result = copy.deepcopy(values)
    *sections, last = key.split(".")
    place = result
    for section in sections:
        place = place[section]
    place[last] = value
    return result


@pytest.mark.parametrize("name", FILES)
def test_every_shipped_file_is_valid(name):
    settings.load_settings(ROOT / name)


def test_profiles_have_the_same_keys_as_params():
    keys = [list(settings.flatten(settings.load_settings(ROOT / name))) for name in FILES]
    assert len(FILES) > 1 and all(one == keys[0] for one in keys)


def test_paper_profile_has_the_papers_values():
    paper = settings.load_settings(ROOT / "profiles" / "paper.yaml")
    assert paper.subsample.per_class == 6000 and paper.subsample.train_to_test == 5
    convnext = paper.convnext
    assert (convnext.size, convnext.epochs, convnext.lr, convnext.lr_step, convnext.lr_gamma) == (256, 10, 1e-4, 2, 0.1)
    assert convnext.weights == "imagenet" and paper.autoencoder.size == 256 and paper.autoencoder.threshold == 0.0035


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("loss", "foo", "loss must be one of ce, bce, not 'foo'"),
        ("loss", None, "loss must be one of ce, bce, not null"),
        ("lossy", "ce", "unknown key lossy"),
        ("convnext.lrr", 1, "unknown key convnext.lrr"),
        ("convnext.lr", "fast", "convnext.lr must be a number above 0, not 'fast'"),
        ("convnext.lr", 0, "convnext.lr must be a number above 0"),
        ("convnext.lr", float("nan"), "convnext.lr must be a number"),
        ("convnext.epochs", 1.5, "convnext.epochs must be a whole number of at least 1, not 1.5"),
        ("convnext.epochs", True, "convnext.epochs must be a whole number of at least 1, not True"),
        ("convnext.size", 50, "convnext.size must be a whole number divisible by 8 of at least 32"),
        ("convnext", 3, "convnext must be a mapping"),
        ("convnext.architecture", " ", "convnext.architecture must be a text"),
        ("convnext.augment.rotation", 300, "convnext.augment.rotation must be a number from 0 to 180"),
        ("subsample.per_class", 2, "subsample.per_class must be a whole number of at least 4 or null, not 2"),
        ("promote.architectures", "convnext_tiny", "promote.architectures must be a list of names"),
        ("promote.architectures", [1], "promote.architectures must be a list of names"),
        ("convnext.lr", float("inf"), "convnext.lr must be a number above 0, not inf"),
        ("density.bandwidth", 1e-200, "density.bandwidth must be a number from 1e-06 to 1000000, not 1e-200"),
        ("density.bandwidth", 1e160, "density.bandwidth must be a number from 1e-06 to 1000000, not 1e+160"),
        ("download.max_megapixels", 1e308, "download.max_megapixels must be a number above 0 up to 10000, not 1e+308"),
        ("download.source", ["data"], "download.source must be one of data, kaggle, huggingface, url"),
    ],
)
def test_what_is_wrong_is_named(values, key, value, says):
    with pytest.raises(UserError, match=r"params\.yaml: ") as caught:
        settings.from_mapping(changed(values, key, value))
    assert says in str(caught.value)


@pytest.mark.parametrize("digits", [400, 5000])
def test_a_number_beyond_all_reason_is_named(values, digits):
    for key in ("convnext.lr", "convnext.epochs"):
        with pytest.raises(UserError, match=rf"params\.yaml: {key} must be a .*number .*, not "):
            settings.from_mapping(changed(values, key, 10**digits))


def test_a_missing_key_is_named(values):
    del values["convnext"]["lr"]
    with pytest.raises(UserError, match=r"convnext\.lr is missing"):
        settings.from_mapping(values)


def test_numbers_as_yaml_reads_them(values):
    assert settings.from_mapping(changed(values, "convnext.lr", "1e-4")).convnext.lr == 1e-4
    rotation = settings.from_mapping(changed(values, "convnext.augment.rotation", 5)).convnext.augment.rotation
    assert isinstance(rotation, float) and rotation == 5


def test_settings_are_frozen(shipped):
    with pytest.raises(dataclasses.FrozenInstanceError):
        shipped.loss = "bce"


def test_flatten_has_the_names_that_dvc_takes(shipped, values):
    flat = settings.flatten(shipped)
    assert flat["loss"] == values["loss"] and flat["convnext.lr"] == values["convnext"]["lr"]
    assert flat["convnext.augment.horizontal_flip"] == 0.5 and flat["promote.architectures"] == ["convnext_tiny"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "is missing"),
        (b"a: [", "no valid YAML"),
        (b"- 1", "must be a mapping"),
        (b"revision: 2024-13-01", "no valid YAML: month must be in 1..12"),
        (b"seed: " + b"1" * 5000, "no valid YAML: .*digits"),
        (b"[" * 5000, "no valid YAML"),
        ("report: été".encode("latin-1"), "not in UTF-8"),
        ("report: été".encode("utf-16"), "not in UTF-8"),
    ],
)
def test_a_file_that_is_no_settings(tmp_path, content, says):
    path = tmp_path / "params.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=says):
        settings.load_settings(path)


def test_a_folder_is_no_settings(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        settings.load_settings(tmp_path)


@pytest.mark.parametrize(("weights", "file"), [("random", None), ("imagenet", None), ("a/w.pth", "a/w.pth")])
def test_the_weights_file_of_a_setting(weights, file):
    assert settings.weights_file(weights) == (None if file is None else Path(file))
