"""The autoencoder: the paper's latent size, errors by their definition, round trips."""

import numpy as np
import pytest
import torch

from dfganext.errors import UserError
from dfganext.models import autoencoder
from dfganext.models.folder import WEIGHTS_FILE


@pytest.mark.parametrize(("size", "dimension"), [(256, 16384), (152, 5776), (96, 2304)])
def test_latent_size(size, dimension):
    images = np.zeros((1, size, size, 3), np.uint8)
    model = autoencoder.build(0)
    latents, errors = autoencoder.encode(model, images), autoencoder.reconstruction_errors(model, images)
    assert latents.shape == (1, dimension) and errors.shape == (1,)


def test_micro_batches_fit_the_caches_of_a_cpu():
    assert [autoencoder.micro_batch_size(size, 32, "cpu") for size in (96, 152, 256, 1024)] == [32, 22, 8, 1]
    assert autoencoder.micro_batch_size(256, 4, "cpu") == 4
    assert autoencoder.micro_batch_size(256, 32, torch.device("cuda", 1)) == 32


def test_errors_are_mean_squares_on_the_unit_scale():
    model = autoencoder.build(1).eval()
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    latents = autoencoder.encode(model, images, batch_size=2)
    errors = autoencoder.reconstruction_errors(model, images, batch_size=2)
    with torch.no_grad():
        for image, latent, error in zip(images, latents, errors, strict=True):
            tensor = torch.from_numpy(image.transpose(2, 0, 1)[None] / 255).float()
            output = model(tensor)
            assert output.min() >= 0 and output.max() <= 1 and output.shape == tensor.shape
            assert error == pytest.approx(float(((output - tensor).double() ** 2).mean()), rel=1e-5)
            np.testing.assert_allclose(latent, model.encoder(tensor).flatten().numpy(), atol=1e-5)


def test_saved_and_loaded(tmp_path):
    model = autoencoder.build(2)
    autoencoder.save(tmp_path, model.state_dict())
    again = autoencoder.load(tmp_path).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / WEIGHTS_FILE).write_bytes(b"xxxxxxxxxxxx")
    (tmp_path / "unreadable" / WEIGHTS_FILE).mkdir(parents=True)
    for name in ("none", "damaged", "unreadable"):
        with pytest.raises(UserError, match=rf"^No autoencoder can be loaded from {tmp_path / name} \(.*`dvc repro"):
            autoencoder.load(tmp_path / name)
