"""The metadata audit finds planted leaks, and none in random metadata."""

import io
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dfganext import images
from dfganext.evaluation import metadata_leak

GROUPS = ["container", "size", "quantisation", "bytes", "all"]


def described(data, label, number):
    """A manifest row of an encoded image."""
    header = images.header(data)
    return {
        "path": f"{label}/{number:05}",
        "label": label,
        "width": header.width,
        "height": header.height,
        "format": header.format,
        "mode": header.mode,
        "quantisation": " ".join(f"{mean:g}" for mean in header.quantisation),
        "bytes": len(data),
        "group": number + (10**6 if label == "fake" else 0),
    }


def alike(count=200, seed=0):
    """Rows in which only the number of bytes varies, at random."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "path": [f"{i:05}" for i in range(count)],
            "label": np.where(np.arange(count) % 2, "fake", "real"),
            "width": 256,
            "height": 256,
            "format": "JPEG",
            "mode": "RGB",
            "quantisation": "28.1 43.2",
            "bytes": rng.integers(9000, 15000, count),
            "group": np.arange(count),
        }
    )


def random(count=200, seed=0):
    """Rows in which everything varies, at random."""
    rng = np.random.default_rng(seed)
    return alike(count, seed).assign(
        width=rng.integers(100, 400, count),
        height=rng.choice([256, 512], count),
        format=rng.choice(["JPEG", "PNG"], count),
        mode=rng.choice(["RGB", "L"], count),
        quantisation=rng.choice(["", "28.1", "28.1 43.2"], count),
    )


def with_fakes(rows, **values):
    changed = rows.copy()
    for name, value in values.items():
        changed[name] = np.where(rows.label == "fake", value, rows[name])
    return changed


def leaks(report):
    return [name for name, group in report["groups"].items() if group["leak"]]


def test_fakes_of_another_jpeg_quality_leak():
    rows, rng = [], np.random.default_rng(0)
    for number in range(60):
        for label, quality in (("real", 75), ("fake", 90)):
            buffer = io.BytesIO()
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            # two of the real images share the fakes' quality
            Image.fromarray(pixels).save(buffer, "JPEG", quality=90 if number < 3 else quality)
            rows.append(described(buffer.getvalue(), label, number))
    rows = pd.DataFrame(rows)
    report = metadata_leak.measure(rows)
    assert set(leaks(report)) == {"quantisation", "bytes", "all"}
    assert report["groups"]["quantisation"]["roc_auc"] == pytest.approx(0.975, abs=0.03)
    tables = rows.quantisation[rows.label == "fake"].iloc[0]
    worst = next(one for one in report["offenders"] if one["feature"] == "quantisation")
    assert (worst["value"], worst["real"], worst["fake"]) == (tables, 0.05, 1.0)
    expected = f"100 % of the fakes but 5 % of the real images have JPEG quantisation tables of mean {' and '.join(tables.split())}."
    assert worst["sentence"] == expected
    warning = next(one for one in report["warnings"] if one.startswith("JPEG quantisation tables"))
    assert "quality" in warning and "resize.reencode: true" in warning


def test_fakes_of_another_size_leak():
    rows = with_fakes(alike(), width=1024, height=1024)
    report = metadata_leak.measure(rows)
    assert leaks(report) == ["size", "bytes", "all"]  # as many bytes on more pixels
    width = next(one for one in report["offenders"] if one["feature"] == "width")
    assert (width["value"], width["real"], width["fake"]) == (1024, 0.0, 1.0)
    assert "1024 pixels wide" in width["sentence"]
    assert any(one.startswith("Width and height") for one in report["warnings"])


def test_fakes_of_another_format_leak():
    report = metadata_leak.measure(with_fakes(alike(), format="PNG", quantisation=""))
    assert leaks(report) == ["container", "quantisation", "all"]
    assert (
        report["groups"]["container"]["roc_auc"] == 1
        and 0.8 < report["groups"]["container"]["interval"][0] < report["groups"]["container"]["interval"][1] == 1
    )
    assert [one["value"] for one in report["offenders"]] == ["PNG", ""]
    assert report["offenders"][1]["sentence"].endswith("have no JPEG quantisation tables.")


@pytest.mark.slow
def test_a_cut_point_where_no_single_value_differs():
    rows = alike(400)
    rows["bytes"] += np.where(rows.label == "real", 3000, 0)
    report = metadata_leak.measure(rows)
    assert leaks(report) == ["bytes", "all"]
    worst = next(one for one in report["offenders"] if one["feature"] == "bytes")
    real, fake = rows.bytes[rows.label == "real"], rows.bytes[rows.label == "fake"]
    gaps = [abs((real > cut).mean() - (fake > cut).mean()) for cut in range(9000, 18000)]
    assert worst["real"] - worst["fake"] == pytest.approx(max(gaps))
    assert worst["real"] == pytest.approx((real > worst["above"]).mean())
    assert worst["fake"] == pytest.approx((fake > worst["above"]).mean())
    assert "of the real images but" in worst["sentence"] and "have more than" in worst["sentence"]


@pytest.mark.parametrize("seed", range(4))
def test_random_metadata_do_not_leak(seed):
    report = metadata_leak.measure(random(300, seed), seed)
    assert list(report["groups"]) == GROUPS
    assert leaks(report) == [] and report["warnings"] == [] and report["offenders"] == []
    assert all(0.35 < group["roc_auc"] < 0.65 for group in report["groups"].values())


@pytest.mark.slow
def test_chance_is_one_half_on_average():
    reports = [metadata_leak.measure(random(100, seed))["groups"] for seed in range(8)]
    assert abs(np.mean([group["roc_auc"] for groups in reports for group in groups.values()]) - 0.5) < 0.04


def test_constant_features_are_exactly_chance():
    groups = metadata_leak.measure(alike())["groups"]
    for name in ("container", "size", "quantisation"):
        assert groups[name]["roc_auc"] == 0.5 and groups[name]["interval"] == [0.5, 0.5] and not groups[name]["leak"]


@pytest.mark.parametrize("seed", range(3))
def test_twenty_rows(seed):
    report = metadata_leak.measure(random(20, seed))
    assert report["images"] == 20
    for group in report["groups"].values():
        low, high = group["interval"]
        assert 0 <= low <= group["roc_auc"] <= high <= 1
    assert "container" in leaks(metadata_leak.measure(with_fakes(alike(20), format="PNG")))


@pytest.mark.parametrize("count", [2, 4, 18])
def test_too_few_rows_are_reported(count):
    report = metadata_leak.measure(alike(count))
    unmeasured = report["groups"]["bytes"]
    assert unmeasured["roc_auc"] is None and unmeasured["interval"] is None and unmeasured["leak"] is False
    assert f"{count // 2} real and {count // 2} fake" in unmeasured["note"]
    assert report["groups"]["size"]["roc_auc"] == 0.5
    assert len(report["warnings"]) == 1 and unmeasured["note"] in report["warnings"][0]


def test_a_single_class_cannot_be_measured():
    report = metadata_leak.measure(random(40).assign(label="real"))
    assert all(group["roc_auc"] is None for group in report["groups"].values()) and report["offenders"] == []


def test_near_duplicates_stay_in_one_fold():
    # Groups of ten with one size each: it predicts the class only for a model trained on other images of the group
    count = 400
    rows = alike(count)
    group = np.arange(count) // 10
    rng = np.random.default_rng(0)
    rows["label"] = np.where(rng.permutation(40)[group] % 2, "fake", "real")
    rows["width"] = rng.permutation(np.arange(200, 240))[group]
    apart = metadata_leak.measure(rows.assign(group=np.arange(count)))
    together = metadata_leak.measure(rows.assign(group=group))
    assert apart["groups"]["size"]["roc_auc"] > 0.75 > 0.65 > together["groups"]["size"]["roc_auc"]


def test_reencoded_bytes_are_a_group_of_features():
    rows = alike()
    saved = pd.Series(np.where(rows.label == "fake", 5000, 6000), index=rows.index)
    report = metadata_leak.measure(rows.assign(bytes_reencoded=saved))
    assert list(report["groups"]) == [*GROUPS, "bytes_reencoded"]
    assert leaks(report) == ["bytes_reencoded"] and "bytes_reencoded" not in report["groups"]["all"]["features"]
    assert report["offenders"][0]["feature"] == "bytes_reencoded"


def test_the_report_is_json_repeatable_and_independent_of_the_order_of_rows():
    rows = with_fakes(random(), format="PNG")
    report = metadata_leak.measure(rows, seed=5)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert metadata_leak.measure(rows.sample(frac=1, random_state=1), seed=5) == report


def test_missing_quantisation_is_none_or_empty():
    rows = with_fakes(alike(), quantisation="")
    assert metadata_leak.measure(rows) == metadata_leak.measure(
        rows.assign(quantisation=rows.quantisation.replace("", np.nan))
    )


@pytest.mark.parametrize("seed", range(4))
def test_a_single_jpeg_among_pngs(seed):
    rows = alike(60).assign(format="PNG", quantisation="")
    rows.loc[0, ["format", "quantisation"]] = ["JPEG", "3.5 4.5"]
    report = metadata_leak.measure(rows, seed)
    assert leaks(report) == [] and report["groups"]["quantisation"]["features"] == ["tables", "table_1", "table_2"]
    assert 0.4 < report["groups"]["quantisation"]["roc_auc"] < 0.6


def test_offenders_are_few_and_sorted():
    rows = with_fakes(alike(), format="PNG", mode="L", quantisation="", width=300, height=200)
    rows["bytes"] += np.where(rows.label == "real", 3000, 0)
    gaps = [abs(one["real"] - one["fake"]) for one in metadata_leak.measure(rows)["offenders"]]
    assert len(gaps) == 5 and gaps == sorted(gaps, reverse=True) and min(gaps) > 0.2


def test_real_faces(faces):
    rows = [
        described(path.read_bytes(), label, number)
        for label in ("real", "fake")
        for number, path in enumerate(sorted((faces / label).glob("*.jpg")))
    ]
    report = metadata_leak.measure(pd.DataFrame(rows))
    assert leaks(report) == [] and report["offenders"] == []
