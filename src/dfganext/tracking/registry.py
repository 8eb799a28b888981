"""The registered model df-ganext: how its versions are saved, registered, found and loaded.

A version holds safetensors weights, the config, the operating point, the code that serves them, its requirements and the list
of its training images; no pickle. All but the list form its identity: two models with the same identity are one version.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from modulefinder import ModuleFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

import dfganext
from dfganext import files, images, pipeline
from dfganext.errors import UserError, one_line
from dfganext.models.folder import CONFIG_FILE, FEATURES_FILE, ONNX_FILE, OPERATING_POINT_FILE, WEIGHTS_FILE
from dfganext.tracking import store
from dfganext.tracking.store import Client, NotFoundError

if TYPE_CHECKING:
    import torch

    from dfganext.inference.detector import Detector

MODEL = "df-ganext"
CHAMPION = "champion"
CHAMPION_URI = f"models:/{MODEL}@{CHAMPION}"

REQUIREMENTS = (
    "mlflow",
    "grad-cam",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "safetensors",
    "scipy",
    "timm",
    "torch",
    "torchvision",
)
"""Packages that the served model imports."""

IDENTITY_NAMES = {
    WEIGHTS_FILE: "weights",
    CONFIG_FILE: "config",
    OPERATING_POINT_FILE: "operating_point",
    FEATURES_FILE: "features",
}
"""The tag of each file of a detector that is part of its identity; an ONNX model follows from the others."""

ARTIFACTS_TAG = "artifacts.sha256"
"""Of a version: the detector's files and the list of training images, with which damage is told from what is missing here."""

PYFUNC = Path("inference") / "pyfunc.py"
"""The served model's file in this package."""
TRAINED_ON_FILE = "trained_on.csv"
CARD_FILE = "README.md"

DESCRIPTION_CHARACTERS = 5000
"""Maximum length of a version's description in MLflow's database."""

_MODEL_URI = re.compile(r"models:/(m-\w+|[^/@]+(@[^/@]+|/\d+|/latest))|runs:/\w+/.+")


class NotLoadableError(UserError):
    """A registered version is whole, but this environment cannot load it."""


@dataclass(frozen=True)
class Contents:
    """The inputs of a version: folder (weights and config), operating_point (file) and trained_on.

    Beside the operating point are the file of features that its rule for decisions needs and the ONNX model that its engine needs,
    where it has them. trained_on has one row per training image: sha256, group, phash, phash_mirrored.
    """

    folder: Path
    operating_point: Path
    trained_on: pd.DataFrame

    @property
    def files(self) -> dict[str, Path]:
        """The files of the detector, by their names in the version."""
        found = {name: self.folder / name for name in (WEIGHTS_FILE, CONFIG_FILE)}
        found[OPERATING_POINT_FILE] = self.operating_point
        beside = {name: self.operating_point.parent / name for name in (FEATURES_FILE, ONNX_FILE)}
        return found | {name: file for name, file in beside.items() if file.is_file()}

    @property
    def engine(self) -> str:
        """The engine that computes the forward pass on a CPU."""
        return json.loads(self.operating_point.read_text(encoding="utf-8")).get("engine", "torch")

    def requirements(self) -> list[str]:
        """Requirement lines of the served model."""
        return requirements() + ([] if self.engine == "torch" else [_requirement(self.engine)])

    def identity(self) -> dict[str, str]:
        """Two versions with the same identity are the same: sha256 of the detector's files, the code and the requirements."""
        code = "".join(f"{name} {files.sha256_of(file)}\n" for name, file in served_code().items())
        found = self.files
        return {
            **{f"{tag}.sha256": files.sha256_of(found[name]) for name, tag in IDENTITY_NAMES.items() if name in found},
            "code.sha256": hashlib.sha256(code.encode()).hexdigest(),
            "requirements.sha256": hashlib.sha256("\n".join(self.requirements()).encode()).hexdigest(),
        }


@cache
def served_code() -> dict[str, Path]:
    """Modules of this package that the served model imports, directly or indirectly: {path in the package: file}."""
    package = Path(dfganext.__file__).parent
    finder = ModuleFinder(path=[str(package.parent)])
    finder.run_script(str(package / PYFUNC))
    modules = [Path(file) for module in finder.modules.values() if (file := getattr(module, "__file__", None))]
    return {file.relative_to(package).as_posix(): file for file in sorted(modules) if file.is_relative_to(package)}


def requirements() -> list[str]:
    """Requirement lines of every served model."""
    return list(map(_requirement, REQUIREMENTS))


def _requirement(name: str) -> str:
    """The installed version of a package, without the build: 2.15.0, not 2.15.0+cpu."""
    return f"{name}=={metadata.version(name).split('+')[0]}"


def save_model(target: Path, contents: Contents, model_id: str | None = None, run_id: str | None = None) -> None:
    """Save a detector as an MLflow model in the folder `target`, which must not exist.

    The model does not need this repository: weights, config, operating point and code are copied into it.
    """
    mlflow = store.import_mlflow()
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    with tempfile.TemporaryDirectory() as temporary:
        detector, code = Path(temporary) / "detector", Path(temporary) / "dfganext"
        detector.mkdir()
        for name, source in contents.files.items():
            shutil.copyfile(source, detector / name)
        files.write_table(Path(temporary) / TRAINED_ON_FILE, contents.trained_on)
        for name, source in served_code().items():
            (code / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, code / name)
        example = base64.b64encode(images.to_jpeg(np.full((32, 32, 3), 128, np.uint8))).decode("ascii")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MLflow advises type hints; the signature below is explicit
            mlflow.pyfunc.save_model(
                str(target),
                python_model=str(code / PYFUNC),
                artifacts={"detector": str(detector), "trained_on": str(Path(temporary) / TRAINED_ON_FILE)},
                code_paths=[str(code)],
                pip_requirements=contents.requirements(),
                signature=ModelSignature(
                    inputs=Schema([ColSpec("string", "image")]),
                    params=ParamSchema([ParamSpec(name, "boolean", False) for name in ("explain", "stability")]),
                ),
                input_example=(pd.DataFrame({"image": [example]}), {"explain": False, "stability": False}),
                mlflow_model=Model(run_id=run_id, model_id=model_id, model_uuid=model_id or uuid.uuid4().hex),
            )
    for compiled in target.rglob("__pycache__"):  # from saving, which runs the input example
        shutil.rmtree(compiled)


def champion(client: Client | None = None) -> Any | None:
    """The champion (an MLflow ModelVersion), or None."""
    with suppress(NotFoundError):
        return (client or store.connect()[0]).get_model_version_by_alias(MODEL, CHAMPION)
    return None


@contextmanager
def resolve(uri: str | None) -> Iterator[Path]:
    """A context with the folder of a detector, for `Detector.load`; a downloaded folder is removed at the end.

    Args:
        uri: models:/<name>@<alias>, models:/<name>/<version>, runs:/<run id>/<path>, or a local folder; None: the champion.

    Raises:
        UserError: there is no model with this URI, or it holds no detector.
    """
    uri = CHAMPION_URI if uri is None else uri
    if not re.match(r"[a-z0-9]+:/", uri):
        yield _detector_folder(Path(uri), uri)
        return
    if not _MODEL_URI.fullmatch(uri):
        raise UserError(
            f"{uri} is not the URI of a model: give models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID/PATH or a local folder."
        )
    missing = f"There is no model {uri} in {store.redact(store.tracking_uri())}: "
    missing += "train and promote one with `make repro`, or name another with --model."
    if not store.exists():
        raise UserError(missing)
    with tempfile.TemporaryDirectory() as temporary:
        try:
            folder = _download(store.connect()[0], uri, Path(temporary))
        except NotFoundError as error:
            raise UserError(missing) from error
        yield _detector_folder(folder, uri)


def pinned(uri: str | None) -> str:
    """The URI with an alias replaced by the version it points to now; other URIs, and aliases not found, are unchanged.

    Args:
        uri: as for `resolve`; None: the champion.
    """
    uri = CHAMPION_URI if uri is None else uri
    match = re.fullmatch(r"models:/([^/@]+)@([^/@]+)", uri)
    with suppress(NotFoundError):
        if match and store.exists():
            version = store.connect()[0].get_model_version_by_alias(*match.groups())
            return f"models:/{match[1]}/{version.version}"
    return uri


def register(client: Client, contents: Contents, detector: Detector, run_id: str, tags: Mapping[str, str]) -> Any:
    """The version (an MLflow ModelVersion) with this identity; a new one if there is none that can be loaded.

    Args:
        detector: the same contents, loaded.
        run_id: the run that the version is linked to.
        tags: additional tags of a new version. Its identity is among its tags too.
    """
    identity = contents.identity()
    with suppress(store.StoreError):  # it exists; another error comes again from the calls below
        client.create_registered_model(MODEL, description="Tells GAN-generated faces from photographs.")
    for known in versions(client):
        if identity.items() <= known.tags.items() and load(client, known, detector.device) is not None:
            return known
    all_tags = {
        **identity,
        "architecture": detector.config.architecture,
        "loss": detector.config.loss,
        "size": str(detector.config.size),
        "threshold": f"{detector.threshold:.6g}",
        "temperature": f"{detector.temperature:.6g}",
        "engine": contents.engine,
        "trained_on.images": str(len(contents.trained_on)),
        "trained_by": run_id,
        **tags,
    }
    run = client.get_run(run_id)
    model_id = client.create_logged_model(run.info.experiment_id, "detector", run_id, tags=all_tags).model_id
    with tempfile.TemporaryDirectory() as temporary:
        save_model(Path(temporary) / "model", contents, model_id, run_id)
        all_tags[ARTIFACTS_TAG] = files.sha256_of(Path(temporary) / "model" / "artifacts")
        client.log_model_artifacts(model_id, str(Path(temporary) / "model"))
    client.finalize_logged_model(model_id, "READY")
    from mlflow.entities import LoggedModelOutput

    client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    return client.create_model_version(MODEL, f"models:/{model_id}", run_id=run_id, tags=all_tags, model_id=model_id)


def attach_card(number: str, card: str, description: str) -> None:
    """Add a model card, Markdown, to the files of a version, in place of an earlier one; and describe the version in the registry.

    Args:
        description: at most `DESCRIPTION_CHARACTERS`.
    """
    client, _ = store.connect()
    version = client.get_model_version(MODEL, number)
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / CARD_FILE
        file.write_text(card, encoding="utf-8")
        client.log_model_artifact(version.source.removeprefix("models:/"), str(file))
    client.update_model_version(MODEL, number, description)


def versions(client: Client) -> list[Any]:
    """All registered versions (MLflow ModelVersions), oldest first."""
    return sorted(store.paginate(client.search_model_versions, f"name = '{MODEL}'"), key=lambda one: int(one.version))


def load(
    client: Client, version: Any, device: torch.device | None = None
) -> tuple[Detector, pd.DataFrame | None] | None:
    """Load a registered version; None and a warning if its files are gone or damaged.

    Args:
        device: as for `Detector.load`.

    Returns:
        Its detector, and its training images as in `Contents`; these are None if the version has no list of them.

    Raises:
        StoreError: the store fails.
        NotLoadableError: the files are as they were registered, but this environment cannot load them.
    """
    from dfganext.inference.detector import Detector  # imports PyTorch

    uri = f"models:/{MODEL}/{version.version}"
    with tempfile.TemporaryDirectory() as temporary:
        try:
            folder = _detector_folder(_download(client, uri, Path(temporary)), uri)
        except store.StoreError:
            raise
        except UserError as error:
            _warn_unusable(uri, error)
            return None
        try:
            return Detector.load(folder, device=device), trained_on(folder)
        except Exception as error:
            if _is_damaged(folder, version):
                _warn_unusable(uri, error)
                return None
            raise NotLoadableError(
                f"{uri} cannot be loaded here, so nothing can be compared with it ({one_line(error)}): install what it needs or "
                f"update this clone. To do without it, give the alias {CHAMPION} to another version."
            ) from error


def _warn_unusable(uri: str, error: Exception) -> None:
    warnings.warn(f"{uri} cannot be loaded, so it cannot be champion: {error}", stacklevel=3)


def _is_damaged(folder: Path, version: Any) -> bool:
    """Whether the files of a version differ from those that were registered; True if that is not on record.

    Args:
        folder: the detector's, as from `resolve`.
    """
    return files.sha256_of(folder.parent) != version.tags.get(ARTIFACTS_TAG)


def trained_on(folder: Path) -> pd.DataFrame | None:
    """The training images of a version, as in `Contents`; None without a list. `folder` is the detector's, as from `resolve`."""
    file = files_beside(folder).get(TRAINED_ON_FILE)
    return None if file is None else pd.read_csv(file, dtype={"sha256": str})


def card(folder: Path) -> str | None:
    """The model card of a version; None without one. `folder` is the detector's, as from `resolve`."""
    file = files_beside(folder).get(CARD_FILE)
    return None if file is None else file.read_text(encoding="utf-8")


def files_beside(folder: Path) -> dict[str, Path]:
    """The model card and the list of training images that belong to a detector, by name; those that there are.

    Args:
        folder: the detector's, as from `resolve`: of a version, or a local folder, which holds these files itself.
    """
    version = folder.parent.parent
    places = {CARD_FILE: version, TRAINED_ON_FILE: folder.parent} if (version / "MLmodel").is_file() else {}
    found = {name: places.get(name, folder) / name for name in (CARD_FILE, TRAINED_ON_FILE)}
    return {name: file for name, file in found.items() if file.is_file()}


def _download(client: Client, uri: str, target: Path) -> Path:
    """Download a logged or registered model into `target`; returns its folder. NotFoundError if there is none."""
    download = store.import_mlflow().artifacts.download_artifacts
    return Path(store.translate_errors(client.uri, download, uri, dst_path=str(target), tracking_uri=client.uri))


def _detector_folder(folder: Path, uri: str) -> Path:
    """The folder with weights and config: `folder` itself, or its subfolder in a logged model."""
    for candidate in (folder, folder / "artifacts" / "detector"):
        if (candidate / WEIGHTS_FILE).is_file() and (candidate / CONFIG_FILE).is_file():
            return candidate
    if not folder.is_dir():
        problem = "is a file: give its folder" if folder.exists() else "does not exist: name another model"
        raise UserError(f"{uri} {problem}.")
    raise UserError(f"{uri} holds no detector ({WEIGHTS_FILE} and {CONFIG_FILE}): name another model.")


def main() -> None:
    """Print which version is champion, before it is served. UserError if there is none."""
    uri = pinned(CHAMPION_URI)
    if uri == CHAMPION_URI:
        raise UserError(
            f"There is no champion in {store.redact(store.tracking_uri())}: train and promote one with `make repro`."
        )
    print(f"{uri} is the champion")


if __name__ == "__main__":
    pipeline.run(main)
