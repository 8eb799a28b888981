from dataclasses import replace

import pytest

from dfganext.settings import Settings


@pytest.fixture(scope="session")
def fine_tuned(shipped) -> Settings:
    """Settings as shipped, but with ImageNet weights: those with which every claim can be tested."""
    return replace(shipped, convnext=replace(shipped.convnext, weights="imagenet"))
