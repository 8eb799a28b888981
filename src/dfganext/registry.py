"""The registered model df-ganext: its versions, and the alias champion, which only a better one may take.

A version holds safetensors weights, the config, the operating point and this package's own code; no pickle. Its tags say
what it was made from and how its last promotion ended.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from PIL import Image

import dfganext
from dfganext import files, labels, pipeline, tracking
from dfganext.detector import OPERATING_POINT_FILE, Detector
from dfganext.errors import UserError
from dfganext.images import ImageError, decode
from dfganext.models.classifier import CONFIG_FILE, WEIGHTS_FILE
from dfganext.settings import Promote
from dfganext.tracking import Client, NotFoundError

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
"""What the served model imports."""

BATCH = 64

_ADDRESS = re.compile(r"models:/(m-\w+|[^/@]+(@[^/@]+|/\d+|/latest))|runs:/\w+/.+")

SAME_ANSWER = 1e-3
"""How far a faster precision may move p_fake."""


@dataclass(frozen=True)
class Promotion:
    """How a promotion ended.

    outcome is "promoted" (the version is champion now), "refused" (it is registered, the champion stays) or "champion" (it
    was champion already); reason says why in a sentence with the scores. score is the candidate's by `metric` on validation
    images, champion_score that of the champion it met, None where there was none that could be scored. champion is the
    version that is champion now.
    """

    version: str
    outcome: Literal["promoted", "refused", "champion"]
    reason: str
    metric: str
    score: float
    champion: str | None
    champion_score: float | None


def promote(
    folder: Path,
    operating_point: Path,
    split: Path,
    raw: Path,
    settings: Promote,
    run_id: str,
    tags: Mapping[str, str] | None = None,
) -> Promotion:
    """Register a detector and make it champion if it beats the present one.

    The champion is scored again on the same validation images as the candidate, by the same code. A candidate with the
    weights and operating point of a registered version is that version, not a new one. A champion whose files are gone or
    unreadable is replaced, with a warning; one that the store fails to hand over is not.

    Args:
        folder: the candidate's weights and config.
        operating_point: its threshold.
        split: table of images with columns path, label, split; the rows with split "validation" count.
        raw: the folder the paths are relative to.
        settings: metric, and architectures that may become champion.
        run_id: the run that the version is linked to: the one that trained it.
        tags: more for the version, such as the data's hash.

    Raises:
        UserError: the store cannot be used, an image or a model file is missing, or the precision changes the answers.
    """
    client, _ = tracking.connect()
    images = validation_images(split, raw)
    with _with_precision(operating_point, settings.precision) as served:
        candidate = Detector.load(folder, served)
        p_fake = probabilities_of(candidate, images)
        if settings.precision != "float32":
            _same_answers(p_fake, probabilities_of(Detector.load(folder, operating_point), images), settings.precision)
        score = score_of(candidate, images, p_fake, settings.metric)
        with tracking.store_lock("promotion"):
            version = _registered(client, folder, served, candidate, run_id, tags or {})
            result = _decide(client, version, candidate, score, images, settings)
            described = {"promotion": result.outcome, "promotion.reason": result.reason}
            described |= {"promotion.metric": result.metric, "promotion.score": f"{result.score:.6f}"}
            for tag, text in described.items():
                client.set_model_version_tag(MODEL, version, tag, text)
    return result


def log_model(
    folder: Path, operating_point: Path, run_id: str, tags: Mapping[str, str] | None = None, name: str = "detector"
) -> str:
    """Log a detector as an MLflow model of the run `run_id`, to be served; returns its address, models:/m-...

    It needs nothing of this repository: weights, config, threshold and the running package's code are copied into it.
    """
    client, experiment = tracking.connect()
    model = client.create_logged_model(experiment, name=name, source_run_id=run_id, tags=dict(tags or {}))
    try:
        with tempfile.TemporaryDirectory() as temporary:
            save_model(Path(temporary) / "model", folder, operating_point, model.model_id, run_id)
            client.log_model_artifacts(model.model_id, str(Path(temporary) / "model"))
    except BaseException:
        client.finalize_logged_model(model.model_id, "FAILED")
        raise
    client.finalize_logged_model(model.model_id, "READY")
    from mlflow.entities import LoggedModelOutput

    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return f"models:/{model.model_id}"


def save_model(
    target: Path, folder: Path, operating_point: Path, model_id: str | None = None, run_id: str | None = None
) -> None:
    """Write a detector as an MLflow model into the folder `target`, which must not exist."""
    mlflow = tracking.import_mlflow()
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    package = Path(dfganext.__file__).parent
    with tempfile.TemporaryDirectory() as temporary:
        detector, code = Path(temporary) / "detector", Path(temporary) / package.name
        detector.mkdir()
        for source, file in ((folder / WEIGHTS_FILE, WEIGHTS_FILE), (folder / CONFIG_FILE, CONFIG_FILE)):
            shutil.copyfile(source, detector / file)
        shutil.copyfile(operating_point, detector / OPERATING_POINT_FILE)
        shutil.copytree(package, code, ignore=shutil.ignore_patterns("__pycache__"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MLflow's advice on type hints: the signature below is explicit
            mlflow.pyfunc.save_model(
                str(target),
                python_model=str(code / "serving" / "model.py"),
                artifacts={"detector": str(detector)},
                code_paths=[str(code)],
                pip_requirements=[f"{name}=={metadata.version(name).split('+')[0]}" for name in REQUIREMENTS],
                signature=ModelSignature(
                    inputs=Schema([ColSpec("string", "image")]),
                    params=ParamSchema([ParamSpec("explain", "boolean", False)]),
                ),
                input_example=(pd.DataFrame({"image": [_example()]}), {"explain": False}),
                mlflow_model=Model(run_id=run_id, model_id=model_id, model_uuid=model_id or uuid.uuid4().hex),
            )
    for cache in target.rglob("__pycache__"):  # saving executes the code once
        shutil.rmtree(cache)


def champion() -> Any | None:
    """The model version that is champion (an MLflow ModelVersion), or None."""
    return _champion(tracking.connect()[0])


@contextmanager
def resolve(uri: str | None) -> Iterator[Path]:
    """The folder of a detector, for `Detector.load`, as a context: what had to be downloaded is removed afterwards.

    Args:
        uri: models:/<name>@<alias>, models:/<name>/<version>, runs:/<run id>/<path>, or a local folder; None: the champion.

    Raises:
        UserError: there is none, or it holds no detector; the message says what to do.
    """
    uri = CHAMPION_URI if uri is None else uri
    if not re.match(r"[a-z0-9]+:/", uri):
        yield _detector_folder(Path(uri), uri)
        return
    if not _ADDRESS.fullmatch(uri):
        raise UserError(
            f"{uri} is no address of a model: give models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID/PATH or a local folder."
        )
    missing = f"There is no model {uri} in {tracking.shown(tracking.tracking_uri())}: "
    missing += "train and promote one with `make repro`, or name another with --model."
    if not tracking.exists():
        raise UserError(missing)
    with tempfile.TemporaryDirectory() as temporary:
        try:
            folder = _download(tracking.connect()[0], uri, Path(temporary))
        except NotFoundError as error:
            raise UserError(missing) from error
        yield _detector_folder(folder, uri)


def pinned(uri: str | None) -> str:
    """models:/<name>@<alias> with the version that the alias stands for now; any other address, and one of no model, as it is.

    None stands for the champion.
    """
    uri = CHAMPION_URI if uri is None else uri
    match = re.fullmatch(r"models:/([^/@]+)@([^/@]+)", uri)
    if not match or not tracking.exists():
        return uri
    try:
        version = tracking.connect()[0].get_model_version_by_alias(*match.groups())
    except NotFoundError:
        return uri
    return f"models:/{match[1]}/{version.version}"


def validation_images(split: Path, raw: Path) -> list[tuple[Path, int]]:
    """Path and label (0 real, 1 fake) of every validation image of a split table. UserError unless both classes occur."""
    from dfganext.data import sampling

    if not split.is_file():
        raise UserError(f"{split} is missing; run `dvc repro subsample` first.")
    table = sampling.read(split)
    rows = table[table.split == sampling.VALIDATION]
    images = [(raw / path, labels.index_of(label)) for path, label in zip(rows.path, rows.label, strict=True)]
    if len({label for _, label in images}) < 2:
        raise UserError(f"{split} has no validation images of both classes to compare models on; run `dvc repro`.")
    return images


def probabilities_of(detector: Detector, images: list[tuple[Path, int]]) -> np.ndarray:
    """A detector's p_fake of image files, float64 (N,); a batch in memory at a time. UserError if one cannot be judged."""
    p_fake: list[float] = []
    for start in range(0, len(images), BATCH):
        pixels = [detector.config.prepare(_pixels(path)) for path, _ in images[start : start + BATCH]]
        p_fake += detector.probabilities(np.stack(pixels)).tolist()
    return np.array(p_fake)


def score_of(detector: Detector, images: list[tuple[Path, int]], p_fake: np.ndarray, metric: str) -> float:
    """roc_auc, accuracy (at the detector's threshold) or log_loss of its p_fake (N,) of N image files."""
    from dfganext.evaluation import metrics

    truth = np.array([label for _, label in images])
    if metric == "accuracy":
        return metrics.at_threshold(truth, p_fake, detector.threshold)["accuracy"]
    return metrics.log_loss(truth, p_fake) if metric == "log_loss" else metrics.ranking(truth, p_fake)["roc_auc"]


def better(score: float, than: float, metric: str) -> bool:
    """Whether a score strictly beats another; of log_loss, less is better."""
    return score < than if metric == "log_loss" else score > than


def _decide(
    client: Client,
    version: str,
    candidate: Detector,
    score: float,
    images: list[tuple[Path, int]],
    settings: Promote,
) -> Promotion:
    metric = settings.metric
    reign = _reign(client)
    present = _champion(client)
    if present is not None and str(present.version) == version:
        reason = (
            f"Version {version} is the champion already, with {metric} {score:.4f} on {len(images)} validation images."
        )
        return Promotion(version, "champion", reason, metric, score, version, score)

    def refused(reason: str, by: str | None, their_score: float | None) -> Promotion:
        return Promotion(version, "refused", reason, metric, score, by, their_score)

    present_score = None if present is None else _score_of_version(client, present, images, metric)
    name = None if present is None else str(present.version)
    if _family(candidate.config.architecture) not in {_family(allowed) for allowed in settings.architectures}:
        reason = (
            f"{candidate.config.architecture} is not among promote.architectures ({', '.join(settings.architectures)}); "
            f"its {metric} is {score:.4f}, the champion's {_number(present_score)}."
        )
        return refused(reason, name, present_score)
    if present_score is not None and not better(score, present_score, metric):
        reason = f"{metric} {score:.4f} on {len(images)} validation images does not beat the {present_score:.4f} of version {name}."
        return refused(reason, name, present_score)

    # Another machine may decide at the same time, where no lock reaches. Each announces itself before it takes the alias and
    # looks for others after, and again after each time it hands the alias on: whoever acts last has seen all that met the
    # same champion, and leaves it with the best of them, of equals the first.
    client.set_model_version_tag(MODEL, version, "promotion", "promoted")
    client.set_model_version_tag(MODEL, version, "promotion.over", reign)
    client.set_registered_model_alias(MODEL, CHAMPION, version)
    best, scores = version, {version: score}
    unknown = _rivals(client, reign, {version})
    judged = {version}
    while unknown:
        for rival in unknown:
            judged.add(str(rival.version))
            rival_score = _score_of_version(client, rival, images, metric)
            if rival_score is not None:
                scores[str(rival.version)] = rival_score
        for name in sorted(scores, key=int, reverse=True):
            if not better(scores[best], scores[name], metric):
                best = name
        client.set_registered_model_alias(MODEL, CHAMPION, best)
        unknown = _rivals(client, reign, judged)
    if best != version:
        reason = (
            f"{metric} {score:.4f} does not beat the {scores[best]:.4f} of version {best}, promoted at the same time."
        )
        return refused(reason, best, scores[best])
    client.set_registered_model_tag(MODEL, "reign", uuid.uuid4().hex)
    if present is None:
        reason = f"{metric} {score:.4f} on {len(images)} validation images; there was no champion."
    elif present_score is None:
        reason = f"{metric} {score:.4f} on {len(images)} validation images; the champion, version {name}, could not be loaded."
    else:
        reason = (
            f"{metric} {score:.4f} on {len(images)} validation images beats the {present_score:.4f} of version {name}."
        )
    return Promotion(version, "promoted", reason, metric, score, version, present_score)


def _registered(
    client: Client, folder: Path, operating_point: Path, candidate: Detector, run_id: str, tags: Mapping[str, str]
) -> str:
    """The version with these weights and this operating point, registered now if there is none that is whole."""
    identity = {
        "weights.sha256": tracking.sha256_of(folder / WEIGHTS_FILE),
        "operating_point.sha256": tracking.sha256_of(operating_point),
    }
    try:
        client.get_registered_model(MODEL)
    except NotFoundError:
        try:
            client.create_registered_model(MODEL, description="Tells GAN-generated faces from photographs.")
        except UserError:  # another machine was faster
            client.get_registered_model(MODEL)
    for known in sorted(_versions(client, identity), key=lambda one: int(one.version)):
        if _detector_of(client, known) is not None:
            return str(known.version)
    described = {
        **identity,
        "architecture": candidate.config.architecture,
        "loss": candidate.config.loss,
        "size": str(candidate.config.size),
        "threshold": f"{candidate.threshold:.6g}",
        "temperature": f"{candidate.temperature:.6g}",
        "trained_by": run_id,
        **tags,
    }
    source = log_model(folder, operating_point, run_id, described)
    model_id = source.removeprefix("models:/")
    made = client.create_model_version(MODEL, source, run_id=run_id, tags=described, model_id=model_id)
    return str(made.version)


def _versions(client: Client, tags: Mapping[str, str]) -> list[Any]:
    """Registered versions that carry all these tags."""
    wanted = " and ".join([f"name = '{MODEL}'", *(f"tags.`{key}` = '{value}'" for key, value in tags.items())])
    return list(tracking.every(lambda token: client.search_model_versions(wanted, page_token=token)))


def _rivals(client: Client, reign: str, judged: set[str]) -> list[Any]:
    """Versions that met the same champion, or have become it since, but those that were judged already."""
    met = [*_versions(client, {"promotion": "promoted", "promotion.over": reign}), _champion(client)]
    named = {str(one.version): one for one in met if one is not None}
    return [one for name, one in named.items() if name not in judged]


def _champion(client: Client) -> Any | None:
    try:
        aliases = client.get_registered_model(MODEL).aliases
        return client.get_model_version(MODEL, aliases[CHAMPION]) if CHAMPION in aliases else None
    except NotFoundError:
        return None


def _reign(client: Client) -> str:
    """What tells one champion's time from the next, so that those who met the same champion know of each other."""
    return client.get_registered_model(MODEL).tags.get("reign", "first")


def _score_of_version(client: Client, version: Any, images: list[tuple[Path, int]], metric: str) -> float | None:
    """A registered version's score on these images; None if its files are gone or unreadable."""
    detector = _detector_of(client, version)
    return None if detector is None else score_of(detector, images, probabilities_of(detector, images), metric)


def _detector_of(client: Client, version: Any) -> Detector | None:
    """A registered version's detector; None, and a warning, if its files are gone or unreadable."""
    uri = f"models:/{MODEL}/{version.version}"
    with tempfile.TemporaryDirectory() as temporary:
        try:
            return Detector.load(_detector_folder(_download(client, uri, Path(temporary)), uri))
        except tracking.StoreError:
            raise
        except Exception as error:
            warnings.warn(f"{uri} cannot be loaded and may not be champion: {error}", stacklevel=2)
            return None


@contextmanager
def _with_precision(operating_point: Path, precision: str) -> Iterator[Path]:
    """The operating point of the served model: the file as it is for float32, else one that names the precision too."""
    if precision == "float32":
        yield operating_point
        return
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary) / OPERATING_POINT_FILE
        files.write_json(target, json.loads(operating_point.read_text(encoding="utf-8")) | {"precision": precision})
        yield target


def _same_answers(p_fake: np.ndarray, exact: np.ndarray, precision: str) -> None:
    moved = float(np.max(np.abs(p_fake - exact)))
    if moved > SAME_ANSWER:
        raise UserError(
            f"promote.precision: {precision} moves p_fake by up to {moved:.2g} on the validation images, more than {SAME_ANSWER:g}: "
            "set it to float32."
        )


def _download(client: Client, uri: str, target: Path) -> Path:
    """Copy a logged or registered model into `target`; the folder it then has. NotFoundError if there is none."""
    mlflow = tracking.import_mlflow()
    return Path(
        tracking.guarded(
            client.uri,
            lambda: mlflow.artifacts.download_artifacts(uri, dst_path=str(target), tracking_uri=client.uri),
        )
    )


def _detector_folder(folder: Path, uri: str) -> Path:
    """The folder with weights and config: `folder` itself, or where a logged model has it."""
    for place in (folder, folder / "artifacts" / "detector"):
        if (place / WEIGHTS_FILE).is_file() and (place / CONFIG_FILE).is_file():
            return place
    raise UserError(f"{uri} holds no detector ({WEIGHTS_FILE} and {CONFIG_FILE}): name another model.")


def _family(architecture: str) -> str:
    """convnext_tiny.fb_in1k is a convnext_tiny: what follows the dot names the weights."""
    return architecture.split(".")[0]


def _pixels(path: Path) -> np.ndarray:
    """A decoded image of the data set; it was within the limits of `download`, which may be wider than the served model's."""
    try:
        return decode(path.read_bytes(), math.inf, 1)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run `dvc repro download`, or `dvc checkout`.") from None
    except ImageError as error:
        raise UserError(f"{path} cannot be judged: {error}; run `dvc repro download`.") from None


def _example() -> str:
    """A small grey picture as a request holds it."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "grey").save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _number(score: float | None) -> str:
    return "unknown" if score is None else f"{score:.4f}"


def main() -> None:
    """Say which version is champion, before it is served. UserError if there is none."""
    present = champion() if tracking.exists() else None
    if present is None:
        raise UserError(
            f"There is no champion in {tracking.shown(tracking.tracking_uri())}: train and promote one with `make repro`."
        )
    print(f"models:/{MODEL}/{present.version} is the champion")


if __name__ == "__main__":
    pipeline.run(main)
