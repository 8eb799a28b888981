"""Distillation: the student predicts the teacher's feature maps, and nothing of it is left in the classifier."""

import dataclasses

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from test_training import CPU, TRAIN, VALIDATION, same
from torch.nn import functional as F

from dfganext.errors import UserError
from dfganext.models import classifier as model_of
from dfganext.settings import Teacher
from dfganext.training import classifier, loop
from dfganext.training.distillation import Distillation, Student, feature_maps

IMAGES = torch.from_numpy(TRAIN.pixels[:8])
NOBODY = Teacher(None, None, 2.0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file with the weights of a teacher."""
    file = tmp_path_factory.mktemp("teacher") / "model.safetensors"
    save_file(model_of.build("test_efficientnet", "bce", 32, seed=3)[0].state_dict(), file)
    return str(file)


@pytest.fixture
def settings(shipped, weights):
    return dataclasses.replace(
        shipped.convnext,
        architecture="test_convnext",
        size=32,
        epochs=2,
        batch_size=16,
        lr=3e-3,
        precision="float32",
        teacher=Teacher("test_efficientnet", weights, 2.0),
    )


@pytest.fixture
def distillation(settings):
    model, _ = model_of.build("test_convnext", "ce", 32, seed=5)
    return Distillation(model, settings.teacher, 32, seed=5)


def train(settings, **options) -> loop.History:
    return classifier.train(TRAIN, VALIDATION, settings, "ce", 5, CPU, **options)[0]


@pytest.mark.parametrize("architecture", ["test_convnext", "test_efficientnet", "test_resnet", "test_vit"])
def test_the_logits_are_those_of_the_classifier(architecture):
    model = model_of.build(architecture, "ce", 160, seed=1)[0].eval()
    images = torch.randn(2, 3, 160, 160)
    (first, *_) = feature_maps(model, "convnext", images)
    with torch.no_grad():
        outputs, (predicted,) = Student(model, [(0, first.shape[1], 7)])(images)
        assert torch.allclose(outputs, model(images), atol=1e-6)
    assert predicted.shape == (2, 7, *first.shape[2:])


def test_maps_of_equal_size_are_paired_the_deepest_of_the_teacher(distillation):
    reference = timm.create_model("test_convnext", features_only=True)
    teacher = timm.create_model("test_efficientnet", features_only=True)
    student = distillation.student
    sizes = [32 // reduction for reduction in reference.feature_info.reduction()]
    others = [32 // reduction for reduction in teacher.feature_info.reduction()]
    assert [sizes[index] for index in student.indices] == [others[index] for index in distillation.indices]
    assert student.indices == [index for index, size in enumerate(sizes) if size in others]
    channels = [(layer.in_channels, layer.out_channels) for layer in student.projections]
    assert channels == [
        (reference.feature_info.channels()[own], teacher.feature_info.channels()[other])
        for own, other in zip(student.indices, distillation.indices, strict=True)
    ]


def maps_of_the_teacher(weights: str) -> list[torch.Tensor]:
    """Standardised maps of the teacher, computed with timm alone."""
    teacher = timm.create_model("test_efficientnet", num_classes=1, checkpoint_path=weights).eval()
    mean, std = (torch.tensor(teacher.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        maps = teacher.forward_intermediates((IMAGES.permute(0, 3, 1, 2) / 255 - mean) / std, intermediates_only=True)
    found = []
    for one in maps:
        centred = one - one.mean(dim=(0, 2, 3), keepdim=True)
        found.append(centred / (centred.square().mean(dim=(0, 2, 3), keepdim=True) + 1e-5).sqrt())
    return found


def test_error_is_the_mean_squared_error_of_standardised_maps(distillation, weights):
    maps = [maps_of_the_teacher(weights)[index] for index in distillation.indices]
    assert float(distillation.error(maps, IMAGES)) == pytest.approx(0, abs=1e-6)
    guesses = [one + offset for offset, one in enumerate(maps, 1)]
    expected = np.mean([offset**2 for offset in range(1, len(maps) + 1)])
    assert float(distillation.error(guesses, IMAGES)) == pytest.approx(expected, rel=1e-4)


def test_the_student_learns_to_predict_the_maps_and_the_teacher_stays(distillation):
    before = {name: value.clone() for name, value in distillation.teacher.state_dict().items()}
    inputs = torch.randn(8, 3, 32, 32)
    optimizer = torch.optim.AdamW(distillation.student.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        _, maps = distillation.student(inputs)
        loss = distillation.error(maps, IMAGES)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert all(torch.equal(before[name], value) for name, value in distillation.teacher.state_dict().items())


def test_training_adds_the_imitation_to_the_loss(settings):
    task = classifier.ClassifierTask(TRAIN, VALIDATION, settings, "ce", 5, CPU)
    batch = next(task.loader.epoch(0))
    model = task.model.train()
    ((loss, shard),) = task.losses(batch)
    inputs = model_of.preprocess(batch.images, task.config)
    outputs, maps = task.distillation.student(inputs)
    error = task.distillation.error(maps, batch.images)
    expected = F.cross_entropy(model(inputs), batch.labels) + 2.0 * error
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert float(shard.imitation_error) == pytest.approx(float(error), rel=1e-5)
    assert outputs.shape == (16, 2)


def test_the_epochs_error_is_the_mean_over_the_images(settings):
    """The last batch is smaller."""
    task = classifier.ClassifierTask(TRAIN, VALIDATION, dataclasses.replace(settings, batch_size=9), "ce", 5, CPU)
    sizes = [len(images) for images in task.loader.global_batches(0)]
    assert min(sizes) < max(sizes) == 9
    starts = np.cumsum([0, *sizes])
    shards = [
        classifier.Shard(slice(start, start + size), torch.zeros(size), torch.tensor(float(size)))
        for start, size in zip(starts, sizes, strict=False)
    ]
    scores = task.train_metrics(0, shards)
    assert scores["imitation_error"] == pytest.approx(np.average(sizes, weights=sizes))


def test_the_error_falls_and_is_reported_only_with_a_teacher(settings):
    first, second = train(settings).epochs
    assert 0 < second["train_imitation_error"] < first["train_imitation_error"]
    assert all(
        "train_imitation_error" not in row for row in train(dataclasses.replace(settings, teacher=NOBODY)).epochs
    )


def test_the_trained_classifier_has_its_own_tensors_alone_and_other_weights(settings):
    plain = train(dataclasses.replace(settings, teacher=NOBODY))
    taught = train(settings)
    assert taught.best_state.keys() == plain.best_state.keys()
    assert not same(taught, plain)


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_weights(settings, tmp_path):
    settings = dataclasses.replace(settings, average=0.9, schedule="one_cycle")
    whole = train(settings)
    checkpoint = tmp_path / "c.pt"

    def stop(row, speed):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(settings, checkpoint=checkpoint, on_epoch=stop)
    assert same(train(settings, checkpoint=checkpoint), whole)


def test_a_checkpoint_belongs_to_the_teachers_content(settings, tmp_path):
    file = tmp_path / "w.safetensors"
    taught = dataclasses.replace(settings, teacher=Teacher("test_efficientnet", str(file), 2.0))
    inputs = []
    for content in (b"one", b"two", b"one"):
        file.write_bytes(content)
        inputs.append(classifier.training_inputs(TRAIN, VALIDATION, taught, "ce", 5, CPU))
    assert inputs[0] == inputs[2] != inputs[1]


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (("test_efficientnet", "gone.pth"), r"convnext\.teacher\.weights: there is no file gone\.pth"),
        (("test_convnext", "WEIGHTS"), r"WEIGHTS does not fit convnext\.teacher\.architecture"),
        (
            ("no_such_net", "WEIGHTS"),
            r"convnext\.teacher\.architecture: no_such_net cannot be used .*timm has no model 'no_such_net'",
        ),
    ],
)
def test_a_teacher_that_cannot_be_loaded_is_named(settings, weights, teacher, message):
    architecture, file = teacher
    teacher = Teacher(architecture, weights if file == "WEIGHTS" else file, 1.0)
    with pytest.raises(UserError, match=message.replace("WEIGHTS", r"\S+model\.safetensors")):
        train(dataclasses.replace(settings, teacher=teacher))


def test_maps_are_compared_at_the_size_of_the_crops(settings):
    """At 56 pixels, ConvNeXt's maps have sides of 14, 7, 3 and 1, the teacher's of 28, 14, 7, 4 and 2."""
    settings = dataclasses.replace(settings, size=64, augment=dataclasses.replace(settings.augment, crop=56))
    train, validation = (
        dataclasses.replace(one, pixels=one.pixels.repeat(2, axis=1).repeat(2, axis=2)) for one in (TRAIN, VALIDATION)
    )
    task = classifier.ClassifierTask(train, validation, settings, "ce", 5, CPU)
    assert (task.distillation.student.indices, task.distillation.indices) == ([0, 1], [1, 2])
    ((loss, _),) = task.losses(next(task.loader.epoch(0)))
    assert torch.isfinite(loss)


def test_of_many_maps_of_one_size_the_deepest_is_used(settings):
    """A vision transformer's maps all have a side of 10, as one of the teacher's."""
    model = model_of.build("test_vit", "ce", 160)[0]
    distillation = Distillation(model, settings.teacher, 160, 0)
    assert (distillation.student.indices, distillation.indices) == ([5], [3])
    _, maps = distillation.student(torch.randn(2, 3, 160, 160))
    assert torch.isfinite(distillation.error(maps, torch.zeros(2, 160, 160, 3, dtype=torch.uint8)))


def test_one_image_has_a_finite_loss(distillation):
    """Its deepest map has one pixel, whose variance is 0."""
    _, maps = distillation.student(torch.randn(1, 3, 32, 32))
    assert maps[-1].shape[2:] == (1, 1)
    assert torch.isfinite(distillation.error(maps, IMAGES[:1]))


class Odd(torch.nn.Conv2d):
    """A network with one feature map, of a size that no other network has."""

    pretrained_cfg = {"architecture": "odd"}  # noqa: RUF012 - as timm's networks have it

    def forward_intermediates(self, images, intermediates_only=False):
        return [torch.zeros(len(images), 4, 31, 31)]


def test_networks_without_maps_of_one_size_are_refused(settings):
    with pytest.raises(
        UserError, match=r"convnext\.teacher: no feature map of test_efficientnet has the size of one of odd"
    ):
        Distillation(Odd(3, 4, 1), settings.teacher, 32, 0)


def test_a_network_without_feature_maps_is_named(settings):
    plain = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1))
    plain.pretrained_cfg = {"architecture": "plain"}
    with pytest.raises(UserError, match=r"convnext\.architecture: timm gives no feature maps of plain"):
        Distillation(plain, settings.teacher, 32, 0)
