"""Training is repeatable for any number of workers and after a stop, and keeps the best epoch by validation."""

import dataclasses

import numpy as np
import pytest
import timm
import torch

from dfganext.data.arrays import Images
from dfganext.errors import UserError
from dfganext.models import autoencoder as model_of_autoencoder
from dfganext.models import classifier as classifier_model
from dfganext.settings import Augment, Degradation, Machine
from dfganext.training import augment, autoencoder, classifier, compute, loop
from dfganext.training.distributed import SINGLE_PROCESS, Group

CPU = Machine(workers=0, device="cpu")
STRONG = Augment(
    horizontal_flip=0.5,
    vertical_flip=0.5,
    rotation=15,
    distortion=0.5,
    colour_jitter=0.8,
    zoom=Degradation(p=0.3, range=(0.7, 1.5)),
    rescale=Degradation(p=0.3, range=(0.4, 0.9)),
    blur=Degradation(p=0.3, range=(0.1, 2)),
    noise=Degradation(p=0.3, range=(1, 15)),
    compression=Degradation(p=0.3, range=(30, 100)),
    crop=None,
)


def striped(count: int, seed: int) -> Images:
    """Smooth noise, and in the fakes a faint checkerboard."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    coarse = rng.integers(60, 190, (count, 4, 4, 3)).repeat(8, axis=1).repeat(8, axis=2)
    board = (np.indices((32, 32)).sum(axis=0) % 2 * 2 - 1)[None, :, :, None] * 12 * labels[:, None, None, None]
    pixels = np.clip(coarse + rng.normal(0, 4, coarse.shape) + board, 0, 255).astype(np.uint8)
    return Images(pixels, labels, [f"{n}" for n in range(count)], np.arange(count))


TRAIN, VALIDATION = striped(64, 0), striped(32, 1)


@pytest.fixture
def settings(shipped):
    return dataclasses.replace(
        shipped.convnext, architecture="test_convnext", size=32, epochs=3, batch_size=16, lr=3e-3, augment=STRONG
    )


def train(settings, machine=CPU, loss="ce", **options):
    return classifier.train(TRAIN, VALIDATION, settings, loss, 5, machine, **options)[0]


def same(one: loop.History, two: loop.History) -> bool:
    return (
        one.epochs == two.epochs
        and one.best_epoch == two.best_epoch
        and all(torch.equal(one.best_state[name], two.best_state[name]) for name in one.best_state)
    )


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_bits_for_any_number_of_workers(settings, precision):
    settings = dataclasses.replace(settings, precision=precision, epochs=2)
    expected = train(settings)
    for workers in (1, 3):
        assert same(expected, train(settings, Machine(workers=workers, device="cpu")))


@pytest.fixture
def dropout(monkeypatch):
    """Networks draw random numbers in training."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *args, **options: create(*args, drop_rate=0.5, **options))


@pytest.mark.slow
def test_the_seed_decides_dropout_also_after_a_stop_and_with_workers(settings, tmp_path, dropout):
    whole = train(settings)

    def stop(row, speed):
        raise KeyboardInterrupt

    for machine in (CPU, Machine(workers=2, device="cpu")):
        assert same(train(settings, machine), whole)
        with pytest.raises(KeyboardInterrupt):
            train(settings, checkpoint=tmp_path / "c.pt", on_epoch=stop)
        torch.rand(7)
        assert same(train(settings, machine, checkpoint=tmp_path / "c.pt"), whole)
        (tmp_path / "c.pt").unlink()
    other = classifier.train(TRAIN, VALIDATION, settings, "ce", 6, CPU)[0]
    assert not same(other, whole)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 2])
def test_a_resumed_run_ends_with_the_same_weights(settings, tmp_path, stop):
    settings = dataclasses.replace(settings, lr_step=1)
    checkpoint = tmp_path / "c.pt"

    def stop_there(row, speed):
        if row["epoch"] == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(settings, checkpoint=checkpoint, on_epoch=stop_there)
    reported = []
    resumed = train(
        settings, checkpoint=checkpoint, on_epoch=lambda row, speed: reported.append((row["epoch"], speed is None))
    )
    assert same(resumed, train(settings))
    assert reported == [(epoch, epoch <= stop) for epoch in (1, 2, 3)]


@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_both_losses_learn(settings, shipped, loss):
    only_colours = dict.fromkeys(
        ("horizontal_flip", "vertical_flip", "rotation", "distortion"), 0
    )  # others move the checkerboard
    settings = dataclasses.replace(
        settings, epochs=6, augment=dataclasses.replace(shipped.convnext.augment, **only_colours)
    )
    history = train(settings, loss=loss)
    assert max(row["validation_accuracy"] for row in history.epochs) > 0.9


@pytest.mark.parametrize(
    ("architecture", "size", "why"),
    [
        ("test_vit", 40, r"test_vit .* 40 pixels .*patch.*convnext\.size"),
        ("inception_v3", 32, r"inception_v3 .* 32 pixels .*convnext\.size"),
        ("coat_tiny", 64, "no Grad-CAM map can be made of coat_tiny"),
        ("mvitv2_tiny", 64, "no Grad-CAM map can be made of mvitv2_tiny"),
    ],
)
def test_unsupported_architectures_are_refused_before_training(settings, architecture, size, why):
    settings = dataclasses.replace(settings, architecture=architecture, size=size)
    with pytest.raises(UserError, match=rf"convnext\.architecture: {why}"):
        classifier.ClassifierTask(TRAIN, VALIDATION, settings, "ce", 5, CPU)


def test_a_batch_of_one_is_refused_where_it_cannot_be_normalised(settings):
    def task(architecture, batch_size, images=22, group=SINGLE_PROCESS):
        changed = dataclasses.replace(settings, architecture=architecture, batch_size=batch_size)
        return classifier.ClassifierTask(striped(images, 0), VALIDATION, changed, "ce", 5, CPU, group)

    for batch_size, images in ((7, 22), (1, 22), (2, 1)):
        with pytest.raises(
            UserError, match=r"test_resnet .* 32 pixels .*more than 1 value.*change .*convnext\.batch_size"
        ):
            task("test_resnet", batch_size, images)
    task("test_resnet", 8)
    task("test_convnext", 7)
    task("test_resnet", 7, 22, Unreplicated(0, 2))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("17 GB"),
        torch.OutOfMemoryError("CUDA out of memory."),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("x does not have a deterministic implementation"),
        ModuleNotFoundError("No module named 'einops'"),
        ZeroDivisionError("division by zero"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_the_dry_run_says_what_failed(monkeypatch, where, error):
    model, config = classifier_model.build("test_convnext", "ce", 32)

    def failing(*_, **__):
        raise error

    if where == "forward":
        monkeypatch.setattr(type(model), "forward", failing)
    else:
        monkeypatch.setattr(torch.Tensor, "backward", failing)
    words = rf"^convnext\.architecture: test_convnext cannot be used with images of 32 pixels \({type(error).__name__}: {error}\)"
    with pytest.raises(UserError, match=words):
        classifier.dry_run(model, config, torch.float32, config.size)


@pytest.mark.parametrize("name", ["preprocess", "to_grid"])
def test_a_bug_outside_the_network_keeps_its_type(monkeypatch, name):
    model, config = classifier_model.build("test_convnext", "ce", 32)

    def failing(*_, **__):
        raise TypeError("a bug")

    monkeypatch.setattr(classifier_model, name, failing)
    with pytest.raises(TypeError, match="a bug"):
        classifier.dry_run(model, config, torch.float32, config.size)


class Unreplicated(Group):
    """One rank of a group whose other ranks do not exist."""

    def replicate(self, model):
        return model


@pytest.mark.parametrize("epochs", [1, 3])
def test_training_that_diverges_names_the_learning_rate(settings, shipped, tmp_path, epochs):
    diverging = dataclasses.replace(settings, lr=1e30, epochs=epochs)
    for _ in range(2):  # the second time from the checkpoint
        with pytest.raises(UserError, match=r"^convnext\.lr: .*diverged.*lower convnext\.lr"):
            train(diverging, checkpoint=tmp_path / "c.pt")
    smaller = dataclasses.replace(shipped.autoencoder, size=32, epochs=epochs, batch_size=8, lr=1e30)
    with pytest.raises(UserError, match=r"^autoencoder\.lr: .*diverged.*lower autoencoder\.lr"):
        autoencoder.train(TRAIN, VALIDATION, smaller, 1, CPU)


@pytest.mark.parametrize("lost", [(0,), (1,), (0, 2)])
def test_an_epoch_without_a_finite_loss_is_never_the_best(settings, monkeypatch, lost):
    """Only the validation loss is not finite here; the weights are."""
    validate, epochs = classifier.ClassifierTask.validate, iter(range(3))

    def failing(task, model):
        found = validate(task, model)
        return {**found, "loss": float("nan"), "accuracy": 1.0} if next(epochs) in lost else found

    monkeypatch.setattr(classifier.ClassifierTask, "validate", failing)
    history = train(settings)
    assert len(history.epochs) == 3 and history.best_epoch - 1 not in (-1, *lost)


@pytest.mark.parametrize("architecture", ["test_convnext", "test_efficientnet", "test_vit"])
def test_the_dry_run_changes_nothing(architecture, dropout):
    model, config = classifier_model.build(architecture, "ce", 32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    classifier.dry_run(model, config, torch.float32, config.size)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and all(weight.grad is None for weight in model.parameters())


def test_the_best_epoch_is_kept(settings):
    history = train(settings)
    ranks = [(row["validation_accuracy"], -row["validation_loss"]) for row in history.epochs]
    assert history.best_epoch == 1 + ranks.index(max(ranks))
    model, config = classifier_model.build("test_convnext", "ce", 32)
    model.load_state_dict(history.best_state)
    logits = classifier_model.predict_logits(model, config, VALIDATION.pixels)
    best = history.epochs[history.best_epoch - 1]
    assert classifier.epoch_metrics(VALIDATION.labels, logits)["loss"] == pytest.approx(
        best["validation_loss"], abs=1e-5
    )


def test_the_learning_rate_falls_stepwise(settings):
    settings = dataclasses.replace(settings, epochs=5, lr=1e-4, schedule="step", lr_step=2, lr_gamma=0.1)
    lrs = [row["lr"] for row in train(settings).epochs]
    assert lrs == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5, 1e-6])


def test_both_losses_have_the_same_value():
    labels, logits = torch.randint(0, 2, (50,)), torch.randn(50) * 5
    bce = classifier.classification_loss(logits[:, None], labels)
    ce = classifier.classification_loss(torch.stack([torch.zeros(50), logits], dim=1), labels)
    torch.testing.assert_close(bce, ce)
    found = classifier.epoch_metrics(labels.numpy(), logits.double().numpy())["loss"]
    assert found == pytest.approx(float(bce), rel=1e-5)


def test_samples_differ_between_epochs_and_rows():
    dataset = augment.AugmentedImages(TRAIN.pixels, TRAIN.labels, STRONG, seed=1)
    one, again = dataset[0, 3][0], dataset[0, 3][0]
    assert torch.equal(one, again) and dataset[0, 3][1] == TRAIN.labels[3]
    assert not torch.equal(one, dataset[1, 3][0])
    other = augment.AugmentedImages(TRAIN.pixels, TRAIN.labels, STRONG, seed=2)
    assert not all(torch.equal(dataset[0, row][0], other[0, row][0]) for row in range(8))
    plain = augment.AugmentedImages(TRAIN.pixels, TRAIN.labels, None, seed=1)
    np.testing.assert_array_equal(plain[7, 3][0], TRAIN.pixels[3])


def test_an_epoch_has_each_row_once_in_its_own_order():
    loader = augment.EpochLoader(augment.AugmentedImages(TRAIN.pixels, TRAIN.labels, None, 1), np.arange(10, 33), 5, 1)
    batches = loader.global_batches(2)
    assert [len(rows) for rows in batches] == [5, 5, 5, 5, 3]
    assert (loader.images, loader.steps, loader.smallest_batch) == (23, 5, 3)
    order = np.concatenate(batches)
    assert sorted(order) == list(range(10, 33))
    assert order.tolist() != np.concatenate(loader.global_batches(3)).tolist()
    loaded = list(loader.epoch(2))
    np.testing.assert_array_equal(torch.cat([batch.images for batch in loaded]).numpy(), TRAIN.pixels[order])
    np.testing.assert_array_equal(torch.cat([batch.labels for batch in loaded]).numpy(), TRAIN.labels[order])


@pytest.mark.parametrize(("count", "smallest"), [(1, 1), (4, 4), (5, 5), (6, 1), (10, 5)])
def test_the_smallest_batch_is_the_last(count, smallest):
    loader = augment.EpochLoader(augment.AugmentedImages(TRAIN.pixels, TRAIN.labels, None, 1), np.arange(count), 5, 1)
    assert loader.smallest_batch == smallest == min(map(len, loader.global_batches(0)))


@pytest.mark.parametrize("number", [5, 8, 19])
def test_the_micro_batches_of_an_autoencoder_give_the_gradient_of_the_batch(shipped, monkeypatch, number):
    monkeypatch.setattr(model_of_autoencoder, "CPU_PIXELS", 8 * 32**2)
    settings = dataclasses.replace(shipped.autoencoder, size=32, batch_size=number)
    task = autoencoder.AutoencoderTask(TRAIN, VALIDATION, settings, 1, CPU)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (number, 32, 32, 3), dtype=np.uint8))
    outputs = []
    for loss, output in task.losses(augment.Batch(images, torch.zeros(number), slice(0, number), number)):
        loss.backward()
        outputs.append(output)
    found = [weight.grad.clone() for weight in task.model.parameters()]
    task.model.zero_grad()
    whole = images.permute(0, 3, 1, 2).double() / 255
    model = task.model.double()
    expected = torch.mean((model(whole) - whole) ** 2)
    expected.backward()
    assert task.train_metrics(0, outputs)["loss"] == pytest.approx(expected.item(), rel=1e-6)
    for weight, gradient in zip(model.parameters(), found, strict=True):
        torch.testing.assert_close(gradient.double(), weight.grad, rtol=1e-4, atol=1e-8)


def test_the_autoencoder_sees_real_images_only(shipped):
    settings = dataclasses.replace(shipped.autoencoder, size=32, epochs=2, batch_size=8)
    history = autoencoder.train(TRAIN, VALIDATION, settings, 1, CPU)
    dark = Images(TRAIN.pixels.copy(), TRAIN.labels, TRAIN.paths, TRAIN.groups)
    dark.pixels[TRAIN.labels == 1] = 0  # the pixels of fakes must not matter
    other = Images(VALIDATION.pixels.copy(), VALIDATION.labels, VALIDATION.paths, VALIDATION.groups)
    other.pixels[VALIDATION.labels == 1] = 255
    assert same(history, autoencoder.train(dark, other, settings, 1, CPU))
    assert history.epochs[-1]["train_loss"] < history.epochs[0]["train_loss"]


def test_training_uses_repeatable_algorithms_only(settings, shipped):
    smaller = dataclasses.replace(shipped.autoencoder, size=32, epochs=1)
    for start in (
        lambda: train(dataclasses.replace(settings, epochs=1)),
        lambda: autoencoder.train(TRAIN, VALIDATION, smaller, 1, CPU),
    ):
        torch.use_deterministic_algorithms(False)
        start()
        assert torch.are_deterministic_algorithms_enabled()


CPU_DEVICE = torch.device("cpu")


def with_bfloat16(patch, has: bool) -> None:
    patch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has)
    patch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)


@pytest.mark.parametrize("native", [True, False])
def test_auto_is_bfloat16_if_the_processor_supports_it_and_float32_otherwise(monkeypatch, native):
    with_bfloat16(monkeypatch, native)
    assert compute.precision("auto", CPU_DEVICE) is (torch.bfloat16 if native else torch.float32)
    assert compute.precision("float32", CPU_DEVICE) is torch.float32
    assert compute.precision("bfloat16", CPU_DEVICE) is torch.bfloat16


@pytest.mark.parametrize("native", [True, False])
def test_auto_on_a_gpu_is_what_the_gpu_supports(monkeypatch, native):
    with_bfloat16(monkeypatch, not native)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert compute.precision("auto", torch.device("cuda")) is (torch.bfloat16 if native else torch.float32)


@pytest.mark.parametrize("available", [True, False])
def test_auto_is_the_cuda_device_if_one_is_available(monkeypatch, available):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert compute.device("auto").type == ("cuda" if available else "cpu")
    assert compute.device("cpu") == CPU_DEVICE
    if available:
        assert compute.device("cuda").type == "cuda"
    else:
        with pytest.raises(UserError, match=r"machine\.device"):
            compute.device("cuda")


@pytest.mark.parametrize(("native", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_auto_is_resolved_once_and_recorded_with_the_model(monkeypatch, settings, native, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with_bfloat16(monkeypatch, native)
    auto = Machine(workers=0, device="auto")
    assert compute.resolve(auto, "auto") == (CPU, precision)
    automatic = dataclasses.replace(settings, precision="auto", epochs=1)
    history, config = classifier.train(TRAIN, VALIDATION, automatic, "ce", 5, auto)
    assert (config.precision, config.device) == (precision, "cpu")
    assert same(history, train(dataclasses.replace(automatic, precision=precision)))


def test_one_cycle_raises_and_lowers_the_learning_rate_batch_by_batch(settings):
    settings = dataclasses.replace(settings, schedule="one_cycle", epochs=4)
    rates = [row["lr"] for row in train(settings).epochs]
    steps = 4 * 4
    reference = torch.optim.lr_scheduler.OneCycleLR(
        torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0), settings.lr, steps, cycle_momentum=False
    )
    expected = []
    for step in range(steps):
        if step % 4 == 0:
            expected.append(reference.get_last_lr()[0])
        reference.optimizer.step()
        reference.step()
    assert rates == pytest.approx(expected)
    assert max(rates) > 2 * rates[0] and max(rates) > 2 * rates[-1]


def test_the_average_of_the_weights_is_validated_and_kept(settings):
    """A long average of few steps lies between the start and the trained weights, and is another model than these."""
    settings = dataclasses.replace(settings, average=0.9, epochs=2)
    averaged, plain = train(settings), train(dataclasses.replace(settings, average=0))
    assert [row["train_loss"] for row in averaged.epochs] == [row["train_loss"] for row in plain.epochs]
    assert [row["validation_loss"] for row in averaged.epochs] != [row["validation_loss"] for row in plain.epochs]
    assert not torch.equal(averaged.best_state["head.fc.weight"], plain.best_state["head.fc.weight"])


def test_a_stopped_run_with_a_cycle_and_an_average_ends_with_the_same_bytes(settings, tmp_path):
    settings = dataclasses.replace(settings, schedule="one_cycle", average=0.9, epochs=3)
    expected = train(settings)

    def stop(row, images_per_second):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(settings, checkpoint=tmp_path / "checkpoint.pt", on_epoch=stop)
    assert same(expected, train(settings, checkpoint=tmp_path / "checkpoint.pt"))


def task_of_crops(settings, architecture, crop):
    """Images of 64 pixels, trained on in crops."""
    train, validation = (
        dataclasses.replace(one, pixels=one.pixels.repeat(2, axis=1).repeat(2, axis=2)) for one in (TRAIN, VALIDATION)
    )
    augment = dataclasses.replace(STRONG, crop=crop)
    settings = dataclasses.replace(settings, architecture=architecture, size=64, augment=augment)
    return classifier.ClassifierTask(train, validation, settings, "ce", 5, CPU)


@pytest.mark.parametrize("architecture", ["test_convnext", "test_vit", "swin_tiny_patch4_window7_224"])
def test_crops_are_trained_on_and_whole_images_validated(settings, architecture):
    task = task_of_crops(settings, architecture, 32)
    seen = []
    task.model.register_forward_pre_hook(lambda network, inputs: seen.append(inputs[0].shape[-1]))
    next(task.losses(next(task.loader.epoch(0))))
    assert seen == [32]
    task.validate(task.model)
    assert set(seen[1:]) == {64}


def test_an_architecture_that_cannot_train_on_crops_is_refused_before_training(settings):
    with pytest.raises(UserError, match=r"levit_128s .*images of 32 pixels .*change .*convnext\.augment\.crop"):
        task_of_crops(settings, "levit_128s", 32)
