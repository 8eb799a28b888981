"""The sources of images: the folder data/, Kaggle, the Hugging Face hub or a URL. Each gives the files to try, labelled by path."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from dfganext import labels
from dfganext.data import archives
from dfganext.data.discovery import Reject, SourceFile, files_of_source
from dfganext.data.fetch import fetch
from dfganext.errors import UserError, one_line
from dfganext.settings import Download

if TYPE_CHECKING:
    from pyarrow import parquet

DOWNLOADS = "downloads"
UNPACKED = "unpacked"
LOCK = "download.lock"


class Collection(NamedTuple):
    """The files of a source, and what is refused already."""

    files: list[SourceFile]
    rejects: list[Reject]


@contextmanager
def exclusive(work: Path) -> Iterator[None]:
    """A lock on the folder `work`, which the experiments of a repository share, from `collect` to the end of the stage."""
    work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print("waiting until another experiment has collected its images", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def collect(settings: Download, data: Path, work: Path) -> Collection:
    """Make the files of the source available on disk, and unpack the archives and Parquet tables among them.

    Args:
        settings: the section `download`.
        data: the folder that the source `data` reads; nothing in it is changed.
        work: a folder that outlives a failed run, so that a broken download continues. Each call empties its subfolder
            `unpacked`, which may be deleted once the manifest is built.

    Returns:
        Files, of which those of an archive `train.zip` have paths in a folder `train` in its place.

    Raises:
        UserError: the source is empty, cannot be reached or does not exist, a key it needs is missing, or an archive is damaged.
    """
    unpacked = work / UNPACKED
    if unpacked.exists():
        shutil.rmtree(unpacked)
    if settings.source == "url":
        return _from_url(settings, work / DOWNLOADS, unpacked)
    if settings.source == "kaggle":
        files, rejects = files_of_source(_kaggle(settings.kaggle), settings.kaggle)
    elif settings.source == "huggingface":
        files, rejects = _huggingface(settings.huggingface, settings.revision)
    else:
        files, rejects = _data(data)
    return _unpack(files, rejects, unpacked)


def _data(folder: Path) -> tuple[list[SourceFile], list[Reject]]:
    if not folder.is_dir() or all(entry.name.startswith(".") for entry in folder.iterdir()):
        raise UserError(
            f"{folder}/ is missing or empty: run `dvc pull` or `dvc update data.dvc` for the pinned images, or put your own into "
            f"{folder}/real and {folder}/fake and run `dvc add data`."
        )
    return files_of_source(folder, folder.name)


def _from_url(settings: Download, downloads: Path, unpacked: Path) -> Collection:
    if settings.url is None or settings.sha256 is None:
        raise UserError("download.source url needs both download.url and download.sha256: set the one that is null.")
    name = PurePosixPath(urlsplit(settings.url).path).name or "archive"
    archive = fetch(settings.url, downloads / f"{settings.sha256.lower()}.archive", settings.sha256)
    refused = archives.extract(archive, unpacked / "0", name)
    files, rejects = files_of_source(unpacked / "0", name)
    return Collection(files, refused + rejects)


def _kaggle(handle: str) -> Path:
    import kagglehub

    try:
        return Path(kagglehub.dataset_download(handle))
    except Exception as error:
        # kagglehub raises requests' errors, its own, ValueError, BadZipFile, ... without a common base
        raise UserError(
            f"Kaggle's data set {handle!r} could not be downloaded ({one_line(error)}): check download.kaggle (owner/name) and the "
            "connection, set KAGGLE_USERNAME and KAGGLE_KEY or put your API token at ~/.kaggle/kaggle.json, and run again."
        ) from error


def _huggingface(repository: str | None, revision: str | None) -> tuple[list[SourceFile], list[Reject]]:
    if repository is None:
        raise UserError("download.huggingface is null, but download.source huggingface needs it: set it to owner/name.")
    import huggingface_hub
    from huggingface_hub import errors

    try:
        folder = Path(huggingface_hub.snapshot_download(repository, repo_type="dataset", revision=revision))
    except (errors.HFValidationError, errors.RevisionNotFoundError, errors.RepositoryNotFoundError) as error:
        raise UserError(
            f"The Hugging Face hub provides no data set {repository!r} of revision {revision or 'main'!r}: check "
            "download.huggingface (owner/name) and download.revision, and if it is private or gated, ask for access and run "
            "`hf auth login`."
        ) from error
    except Exception as error:
        # httpx, hf_xet and the hub's own errors have no common base
        raise UserError(
            f"The data set {repository} could not be downloaded from the Hugging Face hub ({one_line(error)}): check the "
            "connection and run again, what has arrived is kept."
        ) from error
    # the hub's cache keeps contents under blobs/, and a snapshot is a folder of links to them
    return files_of_source(folder, repository, within=folder.parent.parent)


def _unpack(files: list[SourceFile], rejects: list[Reject], target: Path) -> Collection:
    """Put the files of archives and of tables of images in the place of these. Archives inside archives stay packed."""
    usable: list[SourceFile] = []
    refused = list(rejects)
    for number, file in enumerate(files):
        folder = target / str(number)
        stem = archives.stem(file.path.name)
        if stem is not None:
            refused += archives.extract(file.file, folder, file.source)
        elif file.path.suffix.lower() == ".parquet":
            stem = file.path.stem
            refused += _extract_parquet(file.file, folder, file.source)
        else:
            usable.append(file)
            continue
        inside, refused_inside = files_of_source(folder, file.source, above=file.path.with_name(stem))
        usable += inside
        refused += refused_inside
    return Collection(usable, refused)


def _extract_parquet(file: Path, target: Path, name: str) -> list[Reject]:
    """Write the images of a Hugging Face table (image: {bytes, path}; label: a ClassLabel or text) to real/ and fake/."""
    import pyarrow as pa
    from pyarrow import parquet

    for folder in labels.NAMES:
        (target / folder).mkdir(parents=True, exist_ok=True)
    rejects = []
    try:
        table = parquet.ParquetFile(file)
        if not {"image", "label"} <= set(table.schema_arrow.names):
            return [Reject(name, "not an image", "a table without columns image and label")]
        for number, (image, label) in enumerate(_rows(table)):
            source = f"{name}/row {number}"
            data = image.get("bytes") if isinstance(image, dict) else None
            if label.lower() not in labels.NAMES:
                rejects.append(Reject(source, "neither real nor fake", f"its label is {label!r}"))
            elif not isinstance(data, bytes):
                rejects.append(Reject(source, "not an image", "the table holds no bytes for it"))
            else:
                (target / label.lower() / f"{number:07d}").write_bytes(data)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{name} cannot be unpacked ({one_line(error)}): make or fetch it again, or make room."
        ) from error
    return rejects


def _rows(table: parquet.ParquetFile) -> Iterator[tuple[object, str]]:
    """The columns image and label, classes by their names."""
    names = _class_names(table.schema_arrow.metadata)
    for batch in table.iter_batches(batch_size=64, columns=["image", "label"]):
        for row in batch.to_pylist():
            label = str(row["label"])
            yield row["image"], names.get(label, label)


def _class_names(metadata: dict[bytes, bytes] | None) -> dict[str, str]:
    """{"0": "real", ...} from the feature description that the datasets library writes into a table."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {str(index): str(name) for index, name in enumerate(features["label"]["names"])}
    except (ValueError, KeyError, TypeError):
        return {}
