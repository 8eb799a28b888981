from dataclasses import replace

import pytest

from dfganext.settings import Settings


@pytest.fixture(scope="session")
def fine_tuned(shipped) -> Settings:
    """The shipped settings with ImageNet weights, with which every claim can be tested."""
    return replace(shipped, convnext=replace(shipped.convnext, weights="imagenet"))
