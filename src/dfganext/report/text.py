"""Numbers as text on the page and the card: a true minus sign, a space before %, a dash for missing values; their templates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jinja2
import pandas as pd

from dfganext.errors import redact
from dfganext.settings import Settings

NONE = "–"

SAMPLE = "the embedded sample of drawn portraits"
SAMPLE_WARNING = "This model was trained on drawn portraits only, to show how the workflow works: what it says about photographs means nothing."


def template(
    name: str, *filters: Callable[..., str], autoescape: bool, package: str = "dfganext.report"
) -> jinja2.Template:
    """A template of a package, with the functions of this module and `filters` as filters, by their names."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package, "."),
        autoescape=autoescape,  # noqa: S701 - off for Markdown alone
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    formats = (number, percent, points, span, percents, confidence, *filters)
    environment.filters |= {function.__name__: function for function in formats}
    return environment.get_template(name)


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """0.500; with `sign`, +0.500."""
    if value is None or pd.isna(value):
        return NONE
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def percent(value: float | None, digits: int = 2) -> str:
    """A share, 0...1, as 50.00 %."""
    return NONE if value is None or pd.isna(value) else f"{number(100 * value, digits)} %"


def points(difference: float, interval: Sequence[float]) -> str:
    """A difference of two shares, 0...1, in percentage points: +1.00 points (0.2 … 1.8)."""
    return f"{number(100 * difference, 2, sign=True)} points ({span([100 * end for end in interval], 1)})"


def span(pair: Sequence[float | None] | None, digits: int = 3) -> str:
    """An interval as 0.400 … 0.600."""
    if pair is None or any(value is None or pd.isna(value) for value in pair):
        return NONE
    return f"{number(pair[0], digits)} … {number(pair[1], digits)}"


def percents(pair: Sequence[float] | None, digits: int = 1) -> str:
    """An interval of shares, 0...1, as 40.0 … 60.0 %."""
    return NONE if pair is None else f"{span([100 * value for value in pair], digits)} %"


def data_name(settings: Settings, images: int, sample: bool) -> str:
    """What the images are: the setting report.data, or their number and source; `sample` for those of the embedded sample."""
    download = settings.download
    sources = {"kaggle": download.kaggle, "huggingface": download.huggingface, "url": redact(str(download.url))}
    found = f"{images:,} images from {sources.get(download.source, 'data')}"
    return settings.report.data or (SAMPLE if sample else found)


def confidence(level: float) -> str:
    """A confidence level as 97.3 %, or > 99.9 %."""
    return "> 99.9 %" if level > 0.999 else f"{number(100 * level, 1)} %"
