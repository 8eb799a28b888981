"""The sources of images: the folder data/, Kaggle, the Hugging Face hub or a URL. Each gives the files to try, labelled by path."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Hashable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from dfganext import labels
from dfganext.data import archives
from dfganext.data.discovery import Reject, SourceFile, files_of_source
from dfganext.data.fetch import fetch
from dfganext.errors import UserError, one_line
from dfganext.settings import Download

DOWNLOADS = "downloads"
UNPACKED = "unpacked"

_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,10}")

_EXTRA = "install it with `pip install 'df-ganext[pipeline]'`"


class Collection(NamedTuple):
    """The files of a source, and what is refused already."""

    files: list[SourceFile]
    rejects: list[Reject]


def collect(settings: Download, data: Path, work: Path) -> Collection:
    """Make the files of the source available on disk, and unpack the archives and Parquet tables among them.

    Args:
        settings: the section `download`.
        data: the folder that the source `data` reads; nothing in it is changed.
        work: a folder that outlives a failed run, so that a broken download continues. Each call empties its subfolder
            `unpacked`, which may be deleted once the manifest is built. Kaggle and the hub keep their downloads in their own
            caches (KAGGLEHUB_CACHE, HF_HOME).

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
    try:
        empty = not folder.is_dir() or all(entry.name.startswith(".") for entry in folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}/ cannot be listed ({error.strerror}): correct its permissions.") from error
    if empty:
        raise UserError(
            f"{folder}/ is missing or empty: run `dvc pull` or `dvc update data.dvc` for the pinned images, or put your own into "
            f"{folder}/real and {folder}/fake and run `dvc add data`."
        )
    return files_of_source(folder, folder.name)


def _from_url(settings: Download, downloads: Path, unpacked: Path) -> Collection:
    for key in ("url", "sha256"):
        if getattr(settings, key) is None:
            raise UserError(
                f"download.{key} is null, but download.source url needs it: set download.url and download.sha256."
            )
    assert settings.url is not None and settings.sha256 is not None
    name = PurePosixPath(urlsplit(settings.url).path).name or "archive"
    archive = fetch(settings.url, downloads / f"{settings.sha256.lower()}.archive", settings.sha256)
    refused = archives.extract(archive, unpacked / "0", name)
    files, rejects = files_of_source(unpacked / "0", name)
    return Collection(files, refused + rejects)


def _kaggle(handle: str) -> Path:
    try:
        import kagglehub
    except ImportError:
        raise UserError(f"download.source kaggle needs kagglehub: {_EXTRA}.") from None
    try:
        return Path(kagglehub.dataset_download(handle))
    except Exception as error:
        # kagglehub raises requests' errors, its own, ValueError, BadZipFile, ... without a common base
        raise UserError(_kaggle_advice(handle, error)) from error


def _kaggle_advice(handle: str, error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403, 404):
        return (
            f"Kaggle does not provide the data set {handle} ({status}): check download.kaggle (owner/name), and if it is right, "
            "set KAGGLE_USERNAME and KAGGLE_KEY, or put your API token at ~/.kaggle/kaggle.json."
        )
    if type(error) is ValueError:
        return f"download.kaggle, {handle!r}, must be owner/name or owner/name/versions/N ({one_line(error)})."
    return (
        f"Kaggle's data set {handle} could not be downloaded ({one_line(error)}): check the connection and run again, "
        "what has arrived is kept."
    )


def _huggingface(repository: str | None, revision: str | None) -> tuple[list[SourceFile], list[Reject]]:
    if repository is None:
        raise UserError("download.huggingface is null, but download.source huggingface needs it: set it to owner/name.")
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise UserError(f"download.source huggingface needs huggingface_hub: {_EXTRA}.") from None
    try:
        folder = Path(huggingface_hub.snapshot_download(repository, repo_type="dataset", revision=revision))
    except errors.HFValidationError as error:
        raise UserError(f"download.huggingface, {repository!r}, must be owner/name ({one_line(error)}).") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"The data set {repository} has no revision {revision!r}: set download.revision to a branch, tag or commit of it."
        ) from error
    except errors.RepositoryNotFoundError as error:  # a gated one too
        raise UserError(
            f"The Hugging Face hub provides no data set {repository}: check download.huggingface (owner/name), and if it is "
            "private or gated, ask for access and run `hf auth login`."
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
        elif file.path.suffix.lower() == ".parquet" and _is_image_table(file.file):
            stem = file.path.stem
            refused += _extract_parquet(file.file, folder, file.source)
        else:
            usable.append(file)
            continue
        inside, refused_inside = files_of_source(folder, file.source, above=file.path.with_name(stem))
        usable += inside
        refused += refused_inside
    return Collection(usable, refused)


def _is_image_table(file: Path) -> bool:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        schema = parquet.read_schema(file)
    except (pa.ArrowException, OSError):
        return False
    return {"image", "label"} <= set(schema.names) and pa.types.is_struct(schema.field("image").type)


def _extract_parquet(file: Path, target: Path, name: str) -> list[Reject]:
    """Write the images of a Hugging Face table (image: {bytes, path}; label: a ClassLabel or text) to real/ and fake/."""
    rejects = []
    for label in labels.NAMES:
        (target / label).mkdir(parents=True, exist_ok=True)
    for row, (image, label) in enumerate(_rows(file, name)):
        folder = str(label).lower()
        source = f"{name}/row {row}"
        if folder not in labels.NAMES:
            rejects.append(Reject(source, "neither real nor fake", f"its label is {label!r}"))
        elif not image or not isinstance(image.get("bytes"), bytes):
            rejects.append(Reject(source, "not an image", "the table holds no bytes for it"))
        else:
            suffix = PurePosixPath(str(image.get("path") or "")).suffix
            place = target / folder / f"{row:07d}{suffix if _SUFFIX.fullmatch(suffix) else ''}"
            try:
                place.write_bytes(image["bytes"])
            except OSError as error:
                raise UserError(f"{name} cannot be unpacked into {target} ({error.strerror}): make room.") from error
    return rejects


def _rows(file: Path, name: str) -> Iterator[tuple[dict[str, Any] | None, Any]]:
    """The columns image and label, classes by their names. UserError where the table is damaged."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
        names = _class_names(table.schema_arrow.metadata)
        for batch in table.iter_batches(batch_size=64, columns=["image", "label"]):
            values = batch.column("label").to_pylist()
            found = [names.get(value, value) if isinstance(value, Hashable) else value for value in values]
            yield from zip(batch.column("image").to_pylist(), found, strict=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{name} is damaged or cut short ({one_line(error)}): make or fetch it again.") from error


def _class_names(metadata: dict[bytes, bytes] | None) -> dict[Any, str]:
    """{0: "real", ...} from the feature description that the datasets library writes into a table."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        names = features["label"]["names"]
    except (ValueError, KeyError, TypeError):
        return {}
    return dict(enumerate(map(str, names)))
