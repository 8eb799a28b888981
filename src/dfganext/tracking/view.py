"""How the MLflow UI shows the experiment: its description, the view for model training, and columns that tell runs apart.

MLflow's UI reads all of it from tags of the experiment, which are written when the experiment is created.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

VIEW = "df-ganext"
"""The ID of the saved view: the UI opens it with ?viewStateShareKey=df-ganext, and lists it in the menu Views."""

COLUMNS = {
    "params": ("loss", "convnext.architecture", "convnext.size", "seed"),
    "metrics": ("accuracy", "roc_auc"),
    "tags": ("promotion", "version"),
}
"""The columns of the runs table beside a run's name and age: what the run is, how good its model, what became of it."""


def tags(created: datetime) -> dict[str, str]:
    """The tags of a new experiment."""
    columns = [f"{kind}.`{name}`" for kind, names in COLUMNS.items() for name in names]
    state = {"selectedColumns": columns, "orderByKey": "attributes.start_time", "orderByAsc": False}
    milliseconds = round(created.timestamp() * 1000)
    view: dict[str, Any] = {"name": "Experiments compared", "createdAt": milliseconds, "updatedAt": milliseconds}
    return {
        "mlflow.experimentKind": "custom_model_development",  # without it, the page may open in the view for language models
        "mlflow.note.content": (
            "Detection of GAN-generated faces. One parent run per execution of the pipeline; below it, one run per stage. "
            "The parameters of a parent are params.yaml; its metrics are those of the test split."
        ),
        f"mlflow.sharedViewState.{VIEW}": json.dumps(view | {"state": json.dumps(state)}),
    }


def path(experiment_id: str) -> str:
    """The path of the runs table with these columns, below the address of an MLflow server."""
    return f"/#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"
