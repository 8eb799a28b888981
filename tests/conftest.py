"""What all tests share. Nothing leaves the machine."""

import os

os.environ |= {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "HF_HUB_OFFLINE": "1",
    "DVC_NO_ANALYTICS": "true",
}
for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
    os.environ.pop(name, None)

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402

from dfganext import settings  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository under test."""
    return ROOT


@pytest.fixture(scope="session")
def shipped() -> settings.Settings:
    """The settings as shipped."""
    return settings.load(ROOT / "params.yaml")


@pytest.fixture(scope="session")
def faces() -> Path:
    """1,800 real faces, where they lie beside the repository; they are licensed for research and not part of it."""
    folder = ROOT.parent / "shared" / "faces"
    if not (folder / "real").is_dir():
        pytest.skip("the real faces (../shared/faces) are not here")
    return folder
