import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from dfganext.demo import render
from dfganext.demo.analysis import Result
from dfganext.demo.facts import Facts
from dfganext.evaluation.decision import DecisionRule

RULE = DecisionRule(max_error=0.05, real_up_to=0.2, fake_above=0.7, novel_above=0.5)
FACTS = Facts("models:/df-ganext/2", "accuracy 92.00 % on its test images", (("model", "<2>"),), RULE)
NAME = '"><script>alert(1)</script>&.png'


def row(**values):
    known = {"path": NAME, "label": "fake", "p_fake": 0.9, "threshold": 0.45, "decision": "fake", "reason": None}
    return known | {"error": None} | values


def result(heat=1.0, **values):
    return Result(row(**values), np.full((32, 32, 3), 100, np.uint8), np.full((2, 2), heat, np.float32))


UNREADABLE = Result(row(label=None, p_fake=None, decision=None, error="the file is empty"))


class Tags(HTMLParser):
    """The start tags of a document, with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def of_class(self, name):
        return [given for _, given in self.found if name in (given.get("class") or "").split()]


def test_texts_from_outside_are_escaped():
    page = render.results([result(), UNREADABLE], FACTS, stability=False) + render.model(FACTS)
    assert "<script" not in page and "<2>" not in page and "&lt;script&gt;" in page
    assert {tag for tag, _ in Tags(page).found} & {"script", "iframe", "object"} == set()


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0.0 %"), (0.0004, "< 0.1 %"), (0.973, "97.3 %"), (0.9996, "> 99.9 %"), (1, "100.0 %")]
)
def test_a_probability_is_never_rounded_to_certainty(value, text):
    assert render.probability(value).replace(render.NO_BREAK, " ") == text


def test_the_bar_shows_probability_threshold_and_where_the_model_is_unsure():
    tags = Tags(render.results([result()], FACTS, stability=False))
    (fill,), (threshold,), (unsure,) = (tags.of_class(f"df-{name}") for name in ("fill", "threshold", "unsure-zone"))
    assert fill["style"] == "width: 90.0%" and threshold["style"] == "left: 45.0%"
    assert unsure["style"] == "left: 20.0%; right: 30.0%"
    (bar,) = tags.of_class("df-bar")
    assert bar["role"] == "img"
    assert bar["aria-label"].replace(render.NO_BREAK, " ") == (
        "Probability of fake: 90.0 %. Decision threshold: 45.0 %. Unsure where hatched, or if unlike the training images; "
        "fake above 70.0 %; real up to 20.0 %."
    )


def test_nothing_is_hatched_where_the_thresholds_are_one():
    rule = dataclasses.replace(RULE, real_up_to=0.45, fake_above=0.45)
    page = render.results([result()], dataclasses.replace(FACTS, rule=rule), stability=False)
    assert "hatched" not in page and not Tags(page).of_class("df-swatch")
    assert "Unsure if unlike the training images; fake above 45.0" in page.replace(render.NO_BREAK, " ")


def test_a_model_without_a_rule_is_unsure_everywhere():
    page = render.results(
        [result(decision="unsure", reason="no thresholds")], Facts("folder", "", (), None), stability=False
    )
    (unsure,) = Tags(page).of_class("df-unsure-zone")
    assert unsure["style"] == "left: 0.0%; right: 0.0%"
    assert "no image is called fake; no image is called real." in page


@pytest.mark.parametrize(("decision", "other"), [("fake", "real"), ("real", "fake")])
def test_the_meaning_of_a_decision_promises_what_its_rule_promises(decision, other):
    text = render.meaning(row(decision=decision), RULE).replace(render.NO_BREAK, " ")
    assert f"Of images like its validation images, at most 5 % of those called {decision} are {other}" in text
    assert "with 95 % confidence" in text and "does not hold for images from elsewhere" in text
    assert text.endswith(render.LIMITS)


def test_the_meaning_of_unsure_gives_the_reason_and_promises_nothing():
    text = render.meaning(row(decision="unsure", reason="p_fake is between 0.2 and 0.7"), RULE)
    assert text.startswith("The model does not decide: p_fake is between 0.2 and 0.7. ")
    assert "its label is fake" in text and "confidence" not in text


def test_every_image_has_a_text_and_every_control_a_name():
    tags = Tags(render.results([result(), result()], FACTS, stability=False))
    pictures = [given for tag, given in tags.found if tag == "img"]
    assert pictures and all("alt" in given for given in pictures)
    sliders = [given for tag, given in tags.found if tag == "input"]
    assert len(sliders) == 2 and all(NAME in given["aria-label"] for given in sliders)
    names = [given["id"] for _, given in tags.found if "id" in given]
    assert len(names) == len(set(names))
    assert {given["aria-labelledby"] for _, given in tags.found if "aria-labelledby" in given} <= set(names)


def test_one_image_has_no_table_and_several_have_one_row_each():
    assert "<table" not in render.results([result()], FACTS, stability=False)
    page = render.results([result(), UNREADABLE], FACTS, stability=False)
    assert len(re.findall(r"<tr>", page)) == 1 + 2
    assert "No decision: the file is empty." in page


def test_the_summary_counts_decisions():
    rows = [row(), row(decision="unsure"), row(), UNREADABLE.row]
    assert render.summary(rows) == "4 images: 2 fake, 1 unsure, 1 unreadable"
    assert render.summary(rows[:1]) == "1 image: 1 fake"


def test_the_link_holds_the_csv():
    page = render.results([result(), UNREADABLE], FACTS, stability=False)
    (link,) = [given for tag, given in Tags(page).found if given.get("download")]
    kind, _, content = link["href"].partition(";base64,")
    assert kind == "data:text/csv;charset=utf-8" and link["download"] == "predictions.csv"
    lines = base64.b64decode(content).decode().splitlines()
    assert lines[0] == "path,label,p_fake,threshold,decision,reason,error"
    assert lines[2] == '"""><script>alert(1)</script>&.png",,,0.45,,,the file is empty'


def test_stability_names_each_copy_and_those_that_change():
    copies = {name: {"decision": "fake", "p_fake": 0.8} for name in ("jpeg_75", "jpeg_50")}
    copies["half_size"] = {"decision": "real", "p_fake": 0.1}
    page = render.results([result(stability={**copies, "changes": ["half_size"]})], FACTS, stability=True)
    assert "The decision changes in 1 of 3 copies" in page and page.count("<strong>changed</strong>") == 1
    page = render.results([result(stability={**copies, "changes": []})], FACTS, stability=True)
    assert "The decision is the same in all 3 copies." in page
    assert render.csv_of([row(stability={**copies, "changes": ["half_size"]})], True).endswith(",half_size real\n")


def test_every_copy_has_a_title():
    from dfganext.inference.detector import COPIES

    assert list(render.COPY_TITLES) == list(COPIES)


def pixels_of(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def test_the_heat_layer_is_transparent_at_zero_and_red_at_the_top():
    layer = pixels_of(render.heat_layer(np.array([[0, 2.0]], np.float32), 16, top=2.0))
    assert layer.shape == (16, 16, 4)
    assert (layer[:, 0, 3] == 0).all()
    red, green, blue, opaque = layer[8, -1]
    assert red > 100 and green == blue == 0 and opaque == 255
    assert (pixels_of(render.heat_layer(np.zeros((2, 2), np.float32), 16, top=0.0))[..., 3] == 0).all()


def test_all_images_of_a_request_have_one_scale():
    page = render.results([result(heat=1.0), result(heat=0.5)], FACTS, stability=False)
    layers = [pixels_of(base64.b64decode(given["src"].split(",")[1])) for given in Tags(page).of_class("df-heat")]
    top, half = (tuple(layer[16, 16, :3].astype(int)) for layer in layers)
    assert top[0] > 100 and top[1:] == (0, 0)  # red
    assert half[1] == max(half) and half[1] > 200  # green
    assert page.count("<span>1</span>") == 2  # the top of the scale
