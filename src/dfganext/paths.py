"""Where the workflow keeps things, relative to the repository root. dvc.yaml repeats these; a test compares the two."""

from pathlib import Path

PARAMS = Path("params.yaml")
DATA = Path("data")

ARTIFACTS = Path("artifacts")
RAW = ARTIFACTS / "raw"
MANIFEST = ARTIFACTS / "manifest.csv"
REJECTS = ARTIFACTS / "rejects.csv"
SPLIT = ARTIFACTS / "split.csv"
IMAGES = ARTIFACTS / "images"
MODELS = ARTIFACTS / "models"
CONVNEXT = MODELS / "convnext"
AUTOENCODER = MODELS / "autoencoder"
EVALUATION = ARTIFACTS / "evaluation"
GRADCAM = ARTIFACTS / "gradcam"
DENSITY = ARTIFACTS / "density"

METRICS = Path("metrics")
EVALUATE_METRICS = METRICS / "evaluate.json"
DENSITY_METRICS = METRICS / "density.json"
GRADCAM_METRICS = METRICS / "gradcam.json"
DATA_METRICS = METRICS / "data.json"

PLOTS = Path("plots")
REPORTS = Path("reports")
FIGURES = REPORTS / "figures"


def images_of_size(size: int) -> Path:
    """The folder of uint8 arrays of `size` x `size` pixels."""
    return IMAGES / str(size)
