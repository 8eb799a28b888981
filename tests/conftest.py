"""Fixtures of all tests. Nothing is sent over a network."""

import os
import shutil

os.environ |= {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "HF_HUB_OFFLINE": "1",
    "DVC_NO_ANALYTICS": "true",
}
for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
    os.environ.pop(name, None)

from contextlib import suppress  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402

from dfganext import settings  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent

BROWSERS = ("chromium", "chromium-browser", "google-chrome")

LONGEST = (
    "/test_workflow.py",
    "/test_score.py",  # beside the first of end_to_end/, whose other files wait for the clone that it makes
    "/end_to_end/",
    "/test_distributed.py",
    "/test_benchmarks.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--stress", action="store_true", help="run the tests marked stress in full length")


@pytest.fixture(scope="session")
def stress(pytestconfig) -> bool:
    """Whether tests run in full length."""
    return pytestconfig.getoption("--stress")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: test processes take whole files, and none should start a long one at the end."""

    def place(item: pytest.Item) -> int:
        return next((place for place, name in enumerate(LONGEST) if name in item.path.as_posix()), len(LONGEST))

    items.sort(key=place)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository under test."""
    return ROOT


@pytest.fixture(scope="session")
def shipped() -> settings.Settings:
    """The settings as shipped."""
    return settings.load_settings(ROOT / "params.yaml")


@pytest.fixture(scope="session")
def faces() -> Path:
    """1,800 real faces in ../shared/faces: their licence allows research only, so the repository does not contain them."""
    folder = ROOT.parent / "shared" / "faces"
    if not (folder / "real").is_dir():
        pytest.skip("the real faces (../shared/faces) are not on this machine")
    return folder


@pytest.fixture(scope="module")  # its event loop runs until then, and would disturb other modules' loops
def browser():
    """Headless Chromium, driven by Playwright."""
    api = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"needs a browser: one of {', '.join(BROWSERS)}")
    with api.sync_playwright() as playwright:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        try:
            launched = playwright.chromium.launch(executable_path=path, args=options)
        except api.Error as error:
            pytest.skip(f"{path} does not start: {str(error).splitlines()[0]}")
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A root with images, a good and a bad detector and, after the first test of a module, an MLflow store."""
    import helpers  # imports PyTorch, which takes seconds

    with pytest.MonkeyPatch.context() as patch:
        folder = helpers.enter_root(tmp_path_factory.mktemp("made"), patch)
        helpers.faces(folder)
        helpers.detector(folder / "good", good=True)
        helpers.detector(folder / "bad", good=False)
    return folder


@pytest.fixture
def here(made, monkeypatch) -> Path:
    """The root of `made` as working directory, with no registered model."""
    import helpers

    from dfganext.tracking import registry, store

    helpers.enter_root(made, monkeypatch)
    helpers.faces(made)
    with suppress(store.NotFoundError):
        store.connect()[0].delete_registered_model(registry.MODEL)
    return made


@pytest.fixture
def run_id(here) -> str:
    from dfganext.tracking import store

    client, experiment = store.connect()
    return client.create_run(experiment, run_name="promote").info.run_id
