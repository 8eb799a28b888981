"""The classifier: heads, weights from files, preprocessing, and round trips."""

import dataclasses
import errno
import json
import pickle
import re

import httpx
import numpy as np
import pytest
import timm
import torch
from huggingface_hub import errors as hub_errors
from safetensors import SafetensorError
from safetensors.torch import save_file

from dfganext.errors import UserError
from dfganext.models import classifier
from dfganext.models.folder import CONFIG_FILE, WEIGHTS_FILE

TINY = "test_convnext"


@pytest.mark.parametrize(("loss", "outputs"), [("ce", 2), ("bce", 1)])
def test_heads(loss, outputs):
    model, config = classifier.build(TINY, loss, 64)
    assert model(torch.zeros(3, 3, 64, 64)).shape == (3, outputs)
    assert config == classifier.ClassifierConfig(TINY, loss, 64, config.mean, config.std)


def test_convnext_tiny_is_the_papers():
    model, config = classifier.build("convnext_tiny", "ce", 224)
    assert [len(stage.blocks) for stage in model.stages] == [3, 3, 9, 3]
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(28, abs=1)
    assert config.mean == (0.485, 0.456, 0.406) and config.std == (0.229, 0.224, 0.225)
    assert classifier.map_layer(model) is model.stages[3].blocks[2]


def test_the_seed_decides_the_weights_and_does_not_change_torchs():
    before = torch.random.get_rng_state()
    one, two, three = (classifier.build(TINY, "ce", 64, seed=seed)[0].state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], three[name]) for name in one)
    assert torch.equal(before, torch.random.get_rng_state())


def test_fake_logits_are_log_odds():
    outputs = torch.randn(7, 2)
    torch.testing.assert_close(torch.sigmoid(classifier.fake_logits(outputs)), outputs.softmax(1)[:, 1])
    torch.testing.assert_close(classifier.fake_logits(outputs[:, :1]), outputs[:, 0])


def test_preprocess_by_its_definition():
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8))
    _, config = classifier.build("convnext_tiny", "ce", 64)
    found = classifier.preprocess(images, config)
    assert found.shape == (2, 3, 5, 7) and found.is_contiguous(memory_format=torch.channels_last)
    for channel, (mean, std) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
        expected = (images[..., channel].double() / 255 - mean) / std
        torch.testing.assert_close(found[:, channel].double(), expected, atol=1e-5, rtol=0)


def test_saved_and_loaded_gives_the_same_logits(tmp_path):
    model, config = classifier.build(TINY, "bce", 64, seed=3)
    classifier.save(tmp_path, model.state_dict(), config)
    images = np.random.default_rng(1).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    again, config_again = classifier.load(tmp_path)
    assert config_again == config
    expected = classifier.predict_logits(model, config, images, batch_size=2)
    np.testing.assert_allclose(classifier.predict_logits(again, config, images, batch_size=5), expected, atol=1e-5)


@pytest.mark.parametrize("architecture", ["test_convnext", "test_vit", "test_efficientnet", "test_resnet"])
def test_features_are_what_the_head_receives(architecture):
    model, config = classifier.build(architecture, "ce", 32)
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    outputs, features = classifier.predict(model, config, images, batch_size=2)
    with torch.inference_mode():
        expected = model.get_classifier()(torch.from_numpy(features)).numpy()
    assert features.shape == (5, model.num_features)
    assert outputs == pytest.approx(expected, abs=1e-5)
    assert not model.get_classifier()._forward_pre_hooks


@pytest.mark.parametrize("architecture", ["test_vit", "swin_tiny_patch4_window7_224"])
def test_a_network_for_crops_is_the_same_network(architecture, tmp_path):
    model, config = classifier.build(architecture, "ce", 64, any_size=True)
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    classifier.save(tmp_path, model.state_dict(), config)
    for other in (classifier.build(architecture, "ce", 64)[0], classifier.load(tmp_path)[0]):
        for name, tensor in other.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name]), name
        expected = classifier.predict_logits(other, config, images)
        assert classifier.predict_logits(model, config, images) == pytest.approx(expected, abs=1e-6)
    assert len(classifier.predict_logits(model, config, images[:, :48, :48])) == 3


def test_a_model_with_two_heads_has_features():
    """DeiT and LeViT are distilled: a second head learns from a teacher."""
    model, config = classifier.build("levit_128s", "ce", 224)
    found = classifier.predict(model, config, np.zeros((1, 224, 224, 3), np.uint8))
    assert found.features.shape == (1, model.num_features)


def test_everybody_who_may_read_the_folder_may_read_the_weights(tmp_path):
    model, config = classifier.build("test_convnext", "ce", 32)
    classifier.save(tmp_path, model.state_dict(), config)
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "config.json").stat().st_mode


def test_precision_and_device_of_training_are_saved_and_may_be_missing(tmp_path):
    model, config = classifier.build(TINY, "ce", 64)
    config = dataclasses.replace(config, precision="bfloat16", device="cuda")
    classifier.save(tmp_path, model.state_dict(), config)
    assert classifier.load(tmp_path)[1] == config
    file = tmp_path / CONFIG_FILE
    values = json.loads(file.read_text())
    del values["precision"], values["device"]
    file.write_text(json.dumps(values))
    assert classifier.load(tmp_path)[1] == dataclasses.replace(config, precision=None, device=None)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(UserError, match=r"No classifier can be loaded .*config\.json.*`dvc repro train_convnext`"):
        classifier.load(tmp_path)
    model, config = classifier.build(TINY, "ce", 64)
    classifier.save(tmp_path, model.state_dict(), config)
    (tmp_path / WEIGHTS_FILE).write_bytes(b"\0" * 100)
    with pytest.raises(UserError, match=r"No classifier can be loaded .*SafetensorError"):
        classifier.load(tmp_path)


def without(key):
    return lambda config: {name: value for name, value in config.items() if name != key}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without("mean"), "mean"),
        (lambda config: {**config, "extra": 1}, "extra"),
        (lambda config: [], "list"),
        (lambda config: {**config, "architecture": "test_nothing"}, "test_nothing"),
        (lambda config: {**config, "architecture": "test_resnet"}, "Missing key"),
        (lambda config: {**config, "loss": "mse"}, "mse"),
        (lambda config: {**config, "size": "large"}, "size"),
        (lambda config: {**config, "std": ["a", "b", "c"]}, "std"),
        (lambda config: {**config, "std": [1, 1]}, "std"),
        (lambda config: {**config, "architecture": "hf-hub:owner/name"}, "timm has no model"),
    ],
)
def test_a_damaged_or_foreign_folder_is_named_with_the_reason(tmp_path, change, reason):
    model, config = classifier.build(TINY, "ce", 64)
    classifier.save(tmp_path, model.state_dict(), config)
    file = tmp_path / CONFIG_FILE
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(UserError, match=rf"from {tmp_path} \(.*{reason}") as caught:
        classifier.load(tmp_path)
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)


def test_tensors_that_share_memory_are_saved(tmp_path):
    model, config = classifier.build("coat_tiny", "ce", 64)
    classifier.save(tmp_path, model.state_dict(), config)
    again = classifier.load(tmp_path)[0].state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("form", ["safetensors", "pth", "nested pth", "other names"])
def test_weights_from_a_file_fill_all_but_the_head(tmp_path, form):
    source = timm.create_model(TINY, num_classes=1000)
    state = source.state_dict()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(state, path)
    elif form == "other names":
        torch.save({f"layer{number}": value for number, value in enumerate(state.values())}, path)
    else:
        torch.save({"model": state} if form == "nested pth" else state, path)
    match = "order" if form == "other names" else "name"
    model, _ = classifier.build(TINY, "ce", 64, str(path), seed=9, match=match)
    again, _ = classifier.build(TINY, "ce", 64, str(path), seed=9, match=match)
    for name, value in model.state_dict().items():
        is_head = name.startswith("head.fc")
        assert torch.equal(value, again.state_dict()[name] if is_head else state[name]), name


def test_batch_normalised_weights_by_order(tmp_path):
    """Checkpoints of other code bases have other names and often no counters of batches."""
    state = timm.create_model("test_efficientnet", num_classes=1000).state_dict()
    kept = {f"x{n}": value for n, (name, value) in enumerate(state.items()) if "num_batches" not in name}
    torch.save(kept, tmp_path / "w.pth")
    model, _ = classifier.build("test_efficientnet", "bce", 64, str(tmp_path / "w.pth"), match="order")
    assert torch.equal(model.state_dict()["conv_stem.weight"], state["conv_stem.weight"])
    assert torch.equal(model.state_dict()["bn2.running_var"], state["bn2.running_var"])
    assert model(torch.randn(4, 3, 64, 64)).abs().max() < 2, "the head of timm starts far from p_fake = 0.5"


def test_other_names_are_refused_unless_matched_by_order(tmp_path):
    state = timm.create_model(TINY, num_classes=1000).state_dict()
    first = next(iter(state))
    torch.save({f"layer{number}": value for number, value in enumerate(state.values())}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=rf"w\.pth .*Missing key.* \"{first}\".*set convnext\.match to order"):
        classifier.build(TINY, "ce", 64, str(tmp_path / "w.pth"))


@pytest.mark.parametrize("match", ["name", "order"])
def test_shapes_must_agree_however_tensors_are_matched(tmp_path, match):
    state = timm.create_model(TINY, num_classes=1000).state_dict()
    name = list(state)[3]
    state[name] = torch.zeros(3, 5)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=rf"size mismatch for {re.escape(name)}: .*\(\[3, 5\]\)"):
        classifier.build(TINY, "ce", 64, str(tmp_path / "w.pth"), match=match)


def test_a_file_with_too_few_tensors_is_refused_by_order(tmp_path):
    state = timm.create_model(TINY, num_classes=1000).state_dict()
    torch.save(dict(list(state.items())[:5]), tmp_path / "w.pth")
    with pytest.raises(UserError, match=rf"Missing key.* \"{re.escape(list(state)[5])}\""):
        classifier.build(TINY, "ce", 64, str(tmp_path / "w.pth"), match="order")


def test_weights_that_cannot_be_used(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        classifier.build(TINY, "ce", 64, str(tmp_path / "none.pth"))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(UserError, match="cannot be read as weights"):
        classifier.build(TINY, "ce", 64, str(tmp_path / "text.pth"))
    torch.save({"model": tmp_path}, tmp_path / "path.pth")  # a type outside what weights_only admits
    with pytest.raises(UserError, match=r"path\.pth cannot be read"):
        classifier.build(TINY, "ce", 64, str(tmp_path / "path.pth"))
    torch.save({"model": [1, 2, 3]}, tmp_path / "list.pth")
    with pytest.raises(UserError, match=r"list\.pth cannot be read as weights"):
        classifier.build(TINY, "ce", 64, str(tmp_path / "list.pth"))
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"does not fit convnext\.architecture .*for ConvNeXt"):
        classifier.build(TINY, "ce", 64, str(tmp_path / "other.pth"))


def test_an_unknown_architecture_names_some_that_exist():
    with pytest.raises(UserError, match=r"convnext\.architecture.*convnext_tinny.*timm"):
        classifier.build("convnext_tinny", "ce", 64)


@pytest.mark.parametrize("weights", ["random", "imagenet"])
def test_an_unknown_tag_of_weights_is_an_unknown_architecture(weights):
    with pytest.raises(UserError, match=r"convnext\.architecture: convnext_tiny\.bogus .*tag \(bogus\)"):
        classifier.build("convnext_tiny.bogus", "ce", 64, weights)


def test_an_architecture_that_cannot_be_made_for_a_size():
    with pytest.raises(UserError, match=r"convnext\.architecture: nest_tiny .* 40 pixels .*convnext\.size"):
        classifier.build("nest_tiny", "ce", 40)


@pytest.mark.parametrize(("form", "prefix"), [("NCHW", 0), ("NHWC", 0), ("tokens", 0), ("tokens", 2)])
def test_features_of_any_layout_become_a_grid(form, prefix):
    model = classifier.build("test_vit", "ce", 64)[0]
    model.num_prefix_tokens = prefix
    model.output_fmt = "NHWC" if form == "NHWC" else "NCHW"
    grid = torch.randn(2, 5, 3, 3)
    tokens = torch.cat([torch.randn(2, prefix, 5), grid.flatten(2).transpose(1, 2)], dim=1)
    features = {"NCHW": grid, "NHWC": grid.permute(0, 2, 3, 1), "tokens": tokens}[form]
    assert torch.equal(classifier.to_grid(features, model), grid)


def test_features_in_no_grid_are_refused():
    model = classifier.build("test_vit", "ce", 64)[0]
    for features in (torch.zeros(2, 7, 5), torch.zeros(2, 3, 4, 5), torch.zeros(2, 5), (torch.zeros(2, 5, 3, 3),)):
        with pytest.raises(UserError, match=r"convnext\.architecture: no Grad-CAM map can be made of test_vit"):
            classifier.to_grid(features, model)


@pytest.mark.parametrize(
    "error",
    [
        OSError("no route to host"),
        httpx.ConnectError("name or service not known"),
        hub_errors.OfflineModeIsEnabled("offline"),
        RuntimeError("CAS service error: connection reset"),
        OSError(errno.ENOSPC, "No space left on device", "/cache/blob"),
        SafetensorError("header too large"),
        pickle.UnpicklingError("Weights only load failed"),
        RuntimeError("No pretrained weights exist for test_convnext."),
    ],
    ids=repr,
)
def test_unavailable_imagenet_weights_give_the_reason_and_what_to_do(monkeypatch, error):
    monkeypatch.setattr(timm.models._builder, "load_pretrained", failing_with(error))
    why = re.escape(f"{type(error).__name__}: {error}")
    words = rf"^convnext\.weights: the ImageNet weights of test_convnext .*\({why}\).*HF_HOME.*random or to the path"
    with pytest.raises(UserError, match=words):
        classifier.build(TINY, "ce", 64, "imagenet")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("17 GB"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: can't allocate memory"),
        ModuleNotFoundError("No module named 'einops'"),
    ],
    ids=repr,
)
def test_errors_of_an_architecture_give_the_reason_and_what_to_do(monkeypatch, error):
    monkeypatch.setattr(timm, "create_model", failing_with(error))
    why = re.escape(f"{type(error).__name__}: {error}")
    words = rf"^convnext\.architecture: test_convnext cannot be used with images of 64 pixels \({why}\).*convnext\.size"
    with pytest.raises(UserError, match=words):
        classifier.build(TINY, "ce", 64)


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(timm, "create_model", failing_with(NameError("name 'x' is not defined")))
    with pytest.raises(NameError):
        classifier.build(TINY, "ce", 64)


def failing_with(error):
    def failing(*_, **__):
        raise error

    return failing
