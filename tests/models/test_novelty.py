"""Distances to the nearest training images, against scikit-learn, and the file of features."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from dfganext.errors import UserError
from dfganext.models import novelty
from dfganext.models.novelty import Neighbours


def test_novelty_is_the_cosine_distance_to_the_tenth_neighbour():
    rng = np.random.default_rng(0)
    train, images = rng.normal(size=(300, 16)), 5 * rng.normal(size=(20, 16))
    exact = NearestNeighbors(n_neighbors=novelty.NEIGHBOURS, metric="cosine").fit(train)
    expected = exact.kneighbors(images)[0][:, -1]
    assert Neighbours.of(train).novelty(images) == pytest.approx(expected, abs=1e-3)  # kept as float16


def test_a_loaded_copy_gives_the_same_novelty(tmp_path):
    rng = np.random.default_rng(0)
    made = Neighbours.of(rng.normal(size=(50, 8)))
    made.save(tmp_path / "features.safetensors")
    images = rng.normal(size=(9, 8))
    assert (Neighbours.load(tmp_path / "features.safetensors").novelty(images) == made.novelty(images)).all()


def test_fewer_training_images_than_neighbours():
    found = Neighbours.of(np.eye(3)).novelty(np.eye(3)[:1])
    assert found == pytest.approx([1])  # to the last of three


def test_a_missing_or_damaged_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"features\.safetensors holds no features of training images"):
        Neighbours.load(tmp_path / "features.safetensors")
    (tmp_path / "features.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=r"`dvc repro evaluate` writes them"):
        Neighbours.load(tmp_path / "features.safetensors")
