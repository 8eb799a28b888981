"""A detector's operating point: what its folder says beside the weights. Without PyTorch, so that it is read quickly."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dfganext import paths
from dfganext.errors import UserError
from dfganext.evaluation.decision import DecisionRule

NOT_CALIBRATED = "This model has no temperature, so 1 is used: p_fake is not calibrated."

_WHAT_TO_DO = (
    f"`dvc repro evaluate` writes one ({paths.OPERATING_POINT.as_posix()}): put it beside the weights that were evaluated; "
    "or give `dfganext predict` a threshold with --threshold."
)


class OperatingPoint(BaseModel):
    """The content of an operating point's file; None where a value is missing."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    threshold: float | None = None
    temperature: float | None = Field(default=None, gt=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    engine: Literal["torch", "onnxruntime", "openvino"] = "torch"
    decision: DecisionRule | None = None

    @property
    def needs_features(self) -> bool:
        """Whether decisions need the features of training images."""
        return self.decision is not None and self.decision.novel_above is not None


def read_operating_point(path: Path, threshold: float | None) -> OperatingPoint:
    """The operating point of a file.

    Args:
        threshold: between 0 and 1, replaces that of the file, which then may be missing or lack the temperature.

    Raises:
        UserError: the file is missing, wrong or incomplete, or the threshold is not between 0 and 1.
    """
    if threshold is not None and not 0 <= threshold <= 1:  # NaN neither
        raise UserError(f"The threshold {threshold:g} is not between 0 and 1: give another.")
    point = OperatingPoint()
    try:
        point = OperatingPoint.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        if threshold is None:
            raise UserError(f"{path} is missing: {_WHAT_TO_DO}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); `dvc repro evaluate` writes one.") from error
    except ValidationError as error:
        first = error.errors()[0]
        reason = ": ".join([*map(str, first["loc"]), first["msg"]])
        raise UserError(f"{path} is not an operating point ({reason}); `dvc repro evaluate` writes one.") from error
    if threshold is not None:
        rule = point.decision
        decision = None if rule is None else rule.with_threshold(threshold)
        return point.model_copy(update={"threshold": threshold, "decision": decision})
    if missing := [name for name in ("threshold", "temperature") if getattr(point, name) is None]:
        raise UserError(f"{path} has no {' and no '.join(missing)}: {_WHAT_TO_DO}")
    return point
