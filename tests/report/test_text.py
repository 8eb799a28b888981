"""Numbers as text on the page."""

import math

import pytest

from dfganext.report import text


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (text.number(-0.12345), "−0.123"),
        (text.number(0.5, 2, sign=True), "+0.50"),
        (text.number(None), "–"),
        (text.number(math.nan), "–"),
        (text.percent(0.99506), "99.51 %"),
        (text.points(-0.01, [-0.018, 0.002]), "−1.00 points (−1.8 … 0.2)"),
        (text.percent(math.nan), "–"),
        (text.span([-1, 0.25], 2), "−1.00 … 0.25"),
        (text.span(None), "–"),
        (text.span([None, None]), "–"),
        (text.percents([0.494, 0.538]), "49.4 … 53.8 %"),
        (text.percents(None), "–"),
    ],
)
def test_numbers(made, expected):
    assert made == expected
