"""params.yaml is read completely, and messages name what is wrong in it."""

import copy
import dataclasses
import datetime
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from dfganext import settings
from dfganext.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
PROFILES = sorted((ROOT / "profiles").glob("*.yaml"))

PAPER = {
    "download.source": "huggingface",
    "download.huggingface": "TheKernel01/140k-Real-and-Fake-Faces",
    "subsample.per_class": 6000,
    "subsample.validation": 0.1,
    "convnext.architecture": "convnext_tiny.fb_in1k",
    "convnext.weights": "imagenet",
    "convnext.size": 256,
    "convnext.epochs": 10,
    "convnext.batch_size": 32,
    "convnext.lr": 1e-4,
    "convnext.schedule": "step",
    "convnext.lr_step": 2,
    "convnext.augment.rotation": 15.0,
    "convnext.augment.distortion": 0.3,
    "autoencoder.size": 256,
    "autoencoder.epochs": 10,
    "table1.first.size": 256,
    "table1.second.size": 152,
    "machine.workers": 8,
}


@pytest.fixture
def values() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "params.yaml").read_text())


def changed(values: dict[str, Any], key: object, value: object) -> dict[str, Any]:
    result = copy.deepcopy(values)
    *sections, last = key.split(".") if isinstance(key, str) else [key]
    place = result
    for section in sections:
        place = place[section]
    place[last] = value
    return result


@pytest.fixture
def params(tmp_path, monkeypatch) -> Path:
    """A copy of the shipped params.yaml in the working directory."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copy(ROOT / "params.yaml", "params.yaml"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("loss", "foo", "loss: Input should be 'ce' or 'bce', not \"foo\""),
        ("loss", None, "loss: Input should be 'ce' or 'bce', not null"),
        ("lossy", "ce", "lossy: unknown key"),
        ("convnext.lrr", 1, "convnext.lrr: unknown key"),
        (3, 4, "3: Keys should be strings"),
        ("convnext.lr", "fast", 'convnext.lr: Input should be a valid number, not "fast"'),
        ("convnext.lr", True, "convnext.lr: Input should be a valid number, not true"),
        ("convnext.lr", "nan", "convnext.lr: Input should be a finite number, not NaN"),
        ("convnext.lr", float("nan"), "convnext.lr: Input should be a finite number, not NaN"),
        ("convnext.lr", float("inf"), "convnext.lr: Input should be a finite number, not Infinity"),
        ("convnext.lr", 10**400, "convnext.lr: Input should be a valid number, not 10000"),
        ("convnext.lr", 0, "convnext.lr: Input should be greater than 0, not 0"),
        ("convnext.epochs", 10**400, "convnext.epochs: Input should be less than or equal to 1000000000, not 10000"),
        ("convnext.epochs", 1.5, "convnext.epochs: Input should be a valid integer, not 1.5"),
        ("convnext.epochs", True, "convnext.epochs: Input should be a valid integer, not true"),
        ("convnext.size", 50, "convnext.size: Input should be a multiple of 8, not 50"),
        ("convnext.size", 24, "convnext.size: Input should be greater than or equal to 32, not 24"),
        ("convnext", 3, "convnext: Input should be a dictionary or an instance of Convnext, not 3"),
        ("convnext", None, "convnext: Input should be a dictionary or an instance of Convnext, not null"),
        ("convnext.architecture", " ", 'convnext.architecture: String should have at least 1 character, not " "'),
        ("convnext.augment.rotation", 300, "convnext.augment.rotation: Input should be less than or equal to 180"),
        ("resize.reencode", 1, "resize.reencode: Input should be a valid boolean, not 1"),
        ("resize.reencode", "yes", 'resize.reencode: Input should be a valid boolean, not "yes"'),
        ("report.data", 2024, "report.data: Input should be a valid string, not 2024"),
        ("report.data", datetime.date(2024, 1, 2), 'report.data: Input should be a valid string, not "2024-01-02"'),
        ("subsample.near_duplicate_bits", "44", 'near_duplicate_bits: Input should be a valid integer, not "44"'),
        ("subsample.per_class", 2, "subsample.per_class: Input should be greater than or equal to 4, not 2"),
        ("promote.architectures", "a", 'promote.architectures: Input should be a valid list, not "a"'),
        ("promote.architectures", [1], "promote.architectures.0: Input should be a valid string, not 1"),
        ("density.bandwidth", 1e-200, "Input should be greater than or equal to 0.000001, not 1e-200"),
        ("density.bandwidth", 1e160, "density.bandwidth: Input should be less than or equal to 1000000, not 1e+160"),
        ("download.max_megapixels", 1e308, "Input should be less than or equal to 10000, not 1e+308"),
        ("download.source", ["data"], "'huggingface' or 'url', not [\"data\"]"),
    ],
)
def test_messages_name_source_key_value_and_what_is_allowed(values, key, value, message):
    with pytest.raises(UserError, match=r"^params\.yaml: .*\.$") as caught:
        settings.from_mapping(changed(values, key, value))
    assert message in str(caught.value)


def test_messages_name_a_missing_key(values):
    del values["convnext"]["lr"]
    with pytest.raises(UserError, match=r"convnext\.lr: missing; `git show HEAD:params\.yaml`"):
        settings.from_mapping(values)


def test_a_misspelt_key_is_called_unknown_rather_than_missing(values):
    values["convnext"]["lrr"] = values["convnext"].pop("lr")
    with pytest.raises(UserError, match=r"convnext\.lrr: unknown key; `git show HEAD:params\.yaml`"):
        settings.from_mapping(values)


def test_a_rule_about_two_keys_names_the_source(values):
    values["convnext"] |= {"processes": 4, "batch_size": 2}
    with pytest.raises(UserError, match=r"^mine\.yaml: convnext\.processes: 4 processes cannot share batches of 2 "):
        settings.from_mapping(values, source="mine.yaml")


@pytest.mark.parametrize(("given", "missing"), [("architecture", "weights"), ("weights", "architecture")])
def test_a_teacher_needs_its_architecture_and_its_weights(values, given, missing):
    values["convnext"]["teacher"][given] = "resnet18"
    with pytest.raises(
        UserError, match=rf"^params\.yaml: convnext\.teacher\.{missing}: a teacher needs its architecture and "
    ):
        settings.from_mapping(values)


def test_numbers_as_yaml_1_1_reads_them(values):
    assert settings.from_mapping(changed(values, "convnext.lr", "1e-4")).convnext.lr == 1e-4
    rotation = settings.from_mapping(changed(values, "convnext.augment.rotation", 5)).convnext.augment.rotation
    assert isinstance(rotation, float) and rotation == 5


def test_settings_are_frozen(shipped):
    for section, key in ((shipped, "loss"), (shipped.convnext, "lr")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(section, key, getattr(section, key))


def test_flatten_returns_the_names_that_dvc_takes(shipped, values):
    flat = settings.flatten(shipped)
    assert flat["loss"] == values["loss"] and flat["convnext.lr"] == values["convnext"]["lr"]
    assert flat["convnext.augment.horizontal_flip"] == 0.5 and flat["promote.architectures"] == ["convnext_tiny"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot be read \(No such file or directory\): run from the repository root"),
        (b"a: [", "not valid YAML"),
        (b"- 1", "the top level: Input should be a dictionary"),
        (b"revision: 2024-13-01", "not valid YAML: month must be in 1..12"),
        (b"seed: " + b"1" * 5000, "not valid YAML: .*digits"),
        ("report: été".encode("latin-1"), "not valid YAML: .*utf-8"),
        ("report: été".encode("utf-16"), "not valid YAML: .*utf-8"),
    ],
)
def test_a_file_without_settings(tmp_path, content, message):
    path = tmp_path / "params.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        settings.load_settings(path)


def test_a_folder_instead_of_a_file(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        settings.load_settings(tmp_path)


@pytest.mark.parametrize(("weights", "file"), [("random", None), ("imagenet", None), ("a/w.pth", "a/w.pth")])
def test_weights_file(weights, file):
    assert settings.weights_file(weights) == (None if file is None else Path(file))


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.name)
def test_every_profile_is_valid_and_holds_only_changes(params, profile):
    before = settings.flatten(settings.load_settings(params))
    lines = settings.apply_profile(profile, params)
    after = settings.flatten(settings.load_settings(params))
    assert [line.split(":")[0] for line in lines] == [key for key in before if before[key] != after[key]]

    def keys(values, prefix=""):
        for key, value in values.items():
            yield from keys(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]

    assert set(keys(yaml.safe_load(profile.read_text()))) == {line.split(":")[0] for line in lines}


def test_the_paper_profile_changes_these_settings_and_no_others(params, shipped, capsys):
    settings.main([str(ROOT / "profiles/paper.yaml")])
    assert settings.flatten(settings.load_settings(params)) == settings.flatten(shipped) | PAPER
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(PAPER) and "convnext.size: 96 -> 256" in lines
    settings.main([str(ROOT / "profiles/paper.yaml")])
    assert capsys.readouterr().out == "params.yaml has these values already.\n"


def test_a_profile_for_robust_training_turns_on_every_degradation(params):
    settings.apply_profile(ROOT / "profiles/robust.yaml", params)
    augment = settings.load_settings(params).convnext.augment
    assert all(getattr(augment, name).p > 0 for name in settings.STRENGTHS)


def test_the_profile_from_scratch_has_a_teacher_and_no_weights(params):
    settings.apply_profile(ROOT / "profiles/from-scratch.yaml", params)
    convnext = settings.load_settings(params).convnext
    assert (convnext.architecture, convnext.weights) == ("convnext_tiny", "random")
    assert convnext.teacher.architecture == "tf_efficientnet_lite0" and convnext.augment.crop < convnext.size
    settings.apply_profile(ROOT / "profiles/from-scratch-2.yaml", params)
    larger = settings.load_settings(params).convnext
    assert larger.weights == "models/crops/model.safetensors"
    assert convnext.augment.crop < larger.augment.crop < larger.size and larger.teacher == convnext.teacher


def test_a_description_names_the_teacher(params):
    settings.apply_profile(ROOT / "profiles/from-scratch.yaml", params)
    described = settings.describe(settings.load_settings(params))
    assert described == "convnext_tiny, random weights, taught by tf_efficientnet_lite0, 256 px, loss ce"


def test_a_profile_keeps_comments_order_and_other_lines(params):
    before = params.read_text().splitlines()
    settings.apply_profile(ROOT / "profiles/paper.yaml", params)
    after = params.read_text().splitlines()
    assert len(before) == len(after)
    assert sum(old != new for old, new in zip(before, after, strict=True)) == len(PAPER)
    for old, new in zip(before, after, strict=True):
        assert old.partition(":")[0] == new.partition(":")[0]
        assert old.partition("#")[2] == new.partition("#")[2]


@pytest.mark.parametrize("value", ["null", "1e-4", "1.0e-4", "true", "yes", "'256'", "[a, b]", "é", "2024-01-02"])
def test_a_profile_value_is_read_as_in_params(params, value):
    """ruamel.yaml reads YAML 1.2 and PyYAML 1.1; only PyYAML's reading counts."""
    Path("profile.yaml").write_text(f"convnext: {{lr: {value}}}\nreport: {{data: {value}}}\n", encoding="utf-8")
    expected = yaml.safe_load(params.read_text())
    changes = yaml.safe_load(Path("profile.yaml").read_text(encoding="utf-8"))
    expected["convnext"] |= changes["convnext"]
    expected["report"] |= changes["report"]
    assert yaml.safe_load(settings._merge_yaml(params.read_text(), changes)) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("convnext: {size: 50}", r"profile\.yaml: convnext\.size: .*, not 50"),
        ("convnext: {lrr: 1}", r"profile\.yaml: convnext\.lrr: unknown key"),
        ("convnext: 3", r"profile\.yaml: convnext: Input should be a dictionary .*, not 3"),
        ("convnext: {processes: 99}", r"profile\.yaml: convnext\.processes: 99 processes cannot share"),
        ("loss: [", r"profile\.yaml is not valid YAML"),
        ("- loss", r"profile\.yaml: the top level must be a mapping"),
        ("", r"profile\.yaml: the top level must be a mapping"),
        (None, r"profile\.yaml cannot be read"),
    ],
)
def test_a_wrong_profile_changes_nothing(params, content, message):
    before = params.read_bytes()
    if content is not None:
        Path("profile.yaml").write_text(content)
    with pytest.raises(SystemExit, match=f"error: {message}"):
        settings.main(["profile.yaml"])
    assert params.read_bytes() == before


def test_a_profile_is_not_applied_to_wrong_params(params):
    params.write_text(params.read_text().replace("loss: ce", "loss: foo"))
    with pytest.raises(UserError, match=r"^params\.yaml: loss: Input should be 'ce' or 'bce', not \"foo\""):
        settings.apply_profile(ROOT / "profiles/paper.yaml", params)


def test_a_duplicate_key_in_params_is_named(params):
    params.write_text(params.read_text() + "seed: 21\n")
    with pytest.raises(UserError, match=r"^params\.yaml is not valid YAML 1\.2: .*duplicate key"):
        settings.apply_profile(ROOT / "profiles/paper.yaml", params)
