"""Paths of the workflow's files, relative to the repository root. dvc.yaml repeats them; a test compares the two."""

import os
from pathlib import Path

PARAMS = Path("params.yaml")
DATA = Path("data")
DATA_DVC = Path("data.dvc")
SAMPLES = Path("samples")
EXTERNAL = Path("external")
DVC_LOCK = Path(".dvc/tmp/rwlock")

ARTIFACTS = Path("artifacts")
VERSIONS = ARTIFACTS / "versions.json"
WEIGHTS = ARTIFACTS / "weights"
TEACHER = ARTIFACTS / "teacher"
RAW = ARTIFACTS / "raw"
MANIFEST = ARTIFACTS / "manifest.csv"
REJECTS = ARTIFACTS / "rejects.csv"
SPLIT = ARTIFACTS / "split.csv"
IMAGES = ARTIFACTS / "images"
MODELS = ARTIFACTS / "models"
CONVNEXT = MODELS / "convnext"
AUTOENCODER = MODELS / "autoencoder"
EVALUATION = ARTIFACTS / "evaluation"
PREDICTIONS = EVALUATION / "predictions.csv"
CANDIDATE = ARTIFACTS / "candidate.json"
OPERATING_POINT = EVALUATION / "operating_point.json"
RELIABILITY = EVALUATION / "reliability.csv"
BASELINE = ARTIFACTS / "baseline"
EXTERNAL_RESULTS = ARTIFACTS / "external"
GRADCAM = ARTIFACTS / "gradcam"
DENSITY = ARTIFACTS / "density"

METRICS = Path("metrics")
AUDIT_METRICS = METRICS / "audit.json"
BASELINE_METRICS = METRICS / "baseline.json"
EVALUATE_METRICS = METRICS / "evaluate.json"
DENSITY_METRICS = METRICS / "density.json"
GRADCAM_METRICS = METRICS / "gradcam.json"
EXTERNAL_METRICS = METRICS / "external.json"

PLOTS = Path("plots")
CONVNEXT_CURVES = PLOTS / "convnext.csv"
CONVNEXT_SPEED = PLOTS / "convnext_speed.csv"
AUTOENCODER_CURVES = PLOTS / "autoencoder.csv"
AUTOENCODER_SPEED = PLOTS / "autoencoder_speed.csv"
ROC = PLOTS / "roc.csv"
PRECISION_RECALL = PLOTS / "precision_recall.csv"
CONFUSION = PLOTS / "confusion.csv"
ROBUSTNESS = PLOTS / "robustness.csv"
EXTERNAL_PLOT = PLOTS / "external.csv"

REPORTS = Path("reports")
PAGE = REPORTS / "index.html"
FIGURES = REPORTS / "figures"
EVALUATION_FIGURE = FIGURES / "evaluation.png"
GRADCAM_REAL_FIGURE = FIGURES / "gradcam_real.png"
GRADCAM_FAKE_FIGURE = FIGURES / "gradcam_fake.png"
DENSITY_FIGURE = FIGURES / "density.png"
PAGE_FIGURES = FIGURES / "page"


def images_of_size(size: int) -> Path:
    """Folder of the uint8 arrays of images of `size` x `size` pixels."""
    return IMAGES / str(size)


def work() -> Path:
    """Folder of partial downloads and training checkpoints.

    It is in the repository, DVC_ROOT: DVC deletes a stage's outputs before it runs, and a temporary workspace after it.
    """
    return Path(os.environ.get("DVC_ROOT", ".")) / ".dfganext"
