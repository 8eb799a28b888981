"""The HTML of the page: results, the table, the bar of the probability. Texts from outside are escaped by Jinja."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
from PIL import Image

from dfganext.demo.analysis import Result
from dfganext.demo.facts import Facts
from dfganext.evaluation.decision import UNSURE, DecisionRule
from dfganext.evaluation.selective import CONFIDENCE
from dfganext.explain import gradcam
from dfganext.inference.rows import Row, csv_writer
from dfganext.report import text

COLORS = "jet"
"""matplotlib's colour map of heat maps, as in all figures of Grad-CAM."""

COPY_TITLES = {
    "jpeg_75": "saved as JPEG, quality 75",
    "jpeg_50": "saved as JPEG, quality 50",
    "half_size": "scaled to half its size",
}

LIMITS = (
    "It says nothing about who is shown, about face swaps or other edits, or about generators whose images the model was not "
    "trained on."
)
"""What no decision says."""

NO_BREAK = "\N{NO-BREAK SPACE}"

_FOLDER = Path(__file__).parent


def asset(name: str) -> str:
    """The text of a file of this package."""
    return (_FOLDER / name).read_text(encoding="utf-8")


def results(found: Sequence[Result], facts: Facts, stability: bool) -> str:
    """The results of one request."""
    top = max((float(one.heat.max()) for one in found if one.heat is not None), default=0.0)
    return _template("results.html").render(
        summary=summary([one.row for one in found]),
        facts=facts,
        cards=[_card(one, facts.rule, top) for one in found],
        table=len(found) > 1,
        csv=data_url("text/csv;charset=utf-8", csv_of([one.row for one in found], stability).encode()),
        colors=_legend(),
        top=f"{top:.3g}" if top else "",
    )


def model(facts: Facts) -> str:
    """What is known of the model."""
    return _template("model.html").render(facts=facts)


def alert(sentence: str) -> str:
    """A sentence in place of results."""
    return _template("results.html").render(summary=sentence, cards=[], alert=True)


def summary(rows: Sequence[Row]) -> str:
    """How many images got which decision: 3 images: 1 fake, 2 unsure."""
    counts = Counter(row["decision"] or "unreadable" for row in rows)
    parts = [f"{counts[name]} {name}" for name in ("fake", "real", UNSURE, "unreadable") if counts[name]]
    return f"{len(rows)} {'image' if len(rows) == 1 else 'images'}: {', '.join(parts)}"


def csv_of(rows: Sequence[Row], stability: bool) -> str:
    """The file that `dfganext predict --csv` writes for these rows."""
    stream = io.StringIO(newline="")
    write = csv_writer(stream, stability)
    for row in rows:
        write(row)
    return stream.getvalue()


def meaning(row: Row, rule: DecisionRule | None) -> str:
    """What the decision for an image means, and what it does not."""
    if row["decision"] == UNSURE or rule is None:
        return (
            f"The model does not decide: {row['reason']}. By the decision threshold alone, its label is {row['label']}; the error rate "
            f"of labels is not bounded. {LIMITS}"
        )
    if row["decision"] == "fake":
        seen = "The model found patterns like those in the fake images that it was trained on."
    else:
        seen = "The model found few or no patterns like those in the fake images that it was trained on."
    other = "real" if row["decision"] == "fake" else "fake"
    return (
        f"{seen} Of images like its validation images, at most {100 * rule.max_error:g}{NO_BREAK}% of those called {row['decision']} are "
        f"{other}, with {100 * CONFIDENCE:g}{NO_BREAK}% confidence. This bound does not hold for images from elsewhere. {LIMITS}"
    )


def probability(value: float) -> str:
    """A probability as text: 97.3 %; never 0 or 100 %."""
    if 0 < value < 0.001:
        return f"<{NO_BREAK}{share(0.001)}"
    return f">{NO_BREAK}{share(0.999)}" if 0.999 < value < 1 else share(value)


def share(value: float) -> str:
    """A share, 0...1, as 50.0 %, which no line break separates."""
    return text.percent(value, 1).replace(" ", NO_BREAK)


def heat_layer(heat: np.ndarray, size: int, top: float) -> bytes:
    """A map as a PNG to lay over its image: blue low and red high, as in `gradcam.overlay`, and transparent at zero.

    Args:
        heat: (h, w), zero or above.
        size: pixels per side of the PNG.
        top: the value shown as red.
    """
    share = np.clip(gradcam.enlarge(heat, size) / top if top > 0 else np.zeros((size, size)), 0, 1)
    return gradcam.png(_colored(share))


def data_url(kind: str, content: bytes) -> str:
    """Content as a URL that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _colored(share: np.ndarray) -> np.ndarray:
    """Shares of the scale, 0...1, as uint8 RGBA; opaque from a quarter of the scale on."""
    colored = mpl.colormaps[COLORS](share)
    colored[..., 3] = np.clip(4 * share, 0, 1)
    return (colored * 255).round().astype(np.uint8)


def _legend() -> str:
    """The colour scale, low to high, as a PNG in a data URL."""
    buffer = io.BytesIO()
    Image.fromarray(_colored(np.linspace(0, 1, 256))[None]).save(buffer, "PNG")
    return data_url("image/png", buffer.getvalue())


def _card(found: Result, rule: DecisionRule | None, top: float) -> dict[str, Any]:
    """The values of one result for the template."""
    row = found.row
    if found.pixels is None or found.heat is None:
        return {"row": row, "probability": None, "note": row["error"]}
    copies = _copies(row)
    return {
        "row": row,
        "note": "; ".join(filter(None, (row["reason"], _changed(copies)))),
        "probability": probability(row["p_fake"]),
        "threshold": share(row["threshold"]),
        "bounds": _bounds(rule),
        "meaning": meaning(row, rule),
        "image": data_url("image/png", gradcam.png(found.pixels)),
        "heat": data_url("image/png", heat_layer(found.heat, len(found.pixels), top)),
        "copies": copies,
    }


def _bounds(rule: DecisionRule | None) -> dict[str, Any]:
    """Where on the bar the model is unsure, and a sentence about it."""
    real_up_to = None if rule is None else rule.real_up_to
    fake_above = None if rule is None else rule.fake_above
    low, high = real_up_to or 0.0, 1.0 if fake_above is None else fake_above
    cases = ["where hatched"] if low < high else []
    if rule is not None and rule.novel_above is not None:
        cases.append("if unlike the training images")
    parts = [f"unsure {', or '.join(cases)}"] if cases else []
    parts.append("no image is called fake" if fake_above is None else f"fake above {share(fake_above)}")
    parts.append("no image is called real" if real_up_to is None else f"real up to {share(real_up_to)}")
    sentence = "; ".join(parts)
    return {"low": low, "high": high, "text": f"{sentence[0].upper()}{sentence[1:]}."}


def _copies(row: Row) -> list[dict[str, Any]]:
    """The decisions for the copies of an image."""
    stability = row.get("stability") or {}
    return [
        {
            "title": title,
            "decision": stability[name]["decision"],
            "probability": probability(stability[name]["p_fake"]),
            "changed": name in stability["changes"],
        }
        for name, title in COPY_TITLES.items()
        if name in stability
    ]


def _changed(copies: Sequence[dict[str, Any]]) -> str:
    """How many copies change the decision; empty without copies or changes."""
    changed = sum(copy["changed"] for copy in copies)
    return f"{changed} of {len(copies)} copies change the decision" if changed else ""


def _template(name: str) -> jinja2.Template:
    return text.template(name, autoescape=True, package="dfganext.demo")
