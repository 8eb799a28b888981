"""A database that tests copy instead of creating their own, which takes MLflow most of a second."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import enter_root


@pytest.fixture(scope="session")
def database(tmp_path_factory) -> Path:
    """An MLflow database with its tables, but without the experiment, which has the absolute path of its root."""
    from dfganext.tracking import store

    file = tmp_path_factory.mktemp("database") / "mlflow.db"
    store.Client(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def enter_root_with_store(database, monkeypatch) -> Callable[[Path], Path]:
    """As `enter_root`, with that database."""

    def enter(folder: Path) -> Path:
        enter_root(folder, monkeypatch)
        if not (folder / "mlflow.db").exists():
            shutil.copyfile(database, folder / "mlflow.db")
        return folder

    return enter
