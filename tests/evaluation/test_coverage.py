"""95 % intervals cover the true value in at least 93 % of samples, on the grid of benchmarks/coverage.py."""

import csv

import pytest

from benchmarks import coverage

FAMILIES = tuple(coverage.families(0.95))


@pytest.mark.parametrize("metric", coverage.DIFFERENCES)
@pytest.mark.parametrize("area", [0.75, 0.99])
def test_paired_differences(metric, area):
    row = coverage.difference_row(metric, area, 80, samples=150)
    assert float(row["coverage"]) >= coverage.GOAL - 0.02, "of 150 samples"


def test_areas_of_images_in_groups():
    assert float(coverage.grouped_row(0.95, 80, samples=150)["coverage"]) >= coverage.GOAL - 0.02, "of 150 samples"


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("area", coverage.AREAS)
@pytest.mark.parametrize("size", coverage.SIZES)
def test_areas_on_the_whole_grid(family, area, size):
    assert float(coverage.area_row(family, area, size)["coverage"]) >= coverage.GOAL


def test_the_results_file_shows_full_coverage(root):
    with (root / "benchmarks/results/coverage.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    areas = [row for row in rows if row["metric"] == "roc_auc"]
    assert len(areas) == len(FAMILIES) * len(coverage.AREAS) * len(coverage.SIZES)
    assert all(float(row["coverage"]) >= coverage.GOAL for row in areas)
