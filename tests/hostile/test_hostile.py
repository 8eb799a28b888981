"""The corpus of hostile files through every way in: each file has its own sentence, the neighbours stay as they are."""

import base64
import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from helpers import add_rule, detector, png

from dfganext import cli, images
from dfganext.data import manifest, sources
from dfganext.demo.analysis import Analyser
from dfganext.images import FORMATS
from dfganext.inference.detector import Detector
from dfganext.inference.pyfunc import FakeFaceDetector
from tests.hostile import corpus, fuzz
from tests.hostile.limits import MAX_MIB

PER_FORMAT = 200
SOME = 25
"""Mutations of each format where each costs more than decoding it."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return add_rule(detector(tmp_path_factory.mktemp("hostile") / "model", good=True, threshold=0.45))


@pytest.fixture
def neighbours():
    """Good images, by names that sort among the others."""
    return {f"{prefix}-good.png": png(number % 2, number) for number, prefix in enumerate(("a", "jpeg-0010", "z"))}


def measured(root, what, count):
    command = [sys.executable, "-W", "ignore", "-m", "tests.hostile.limits", what, str(count)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.slow
def test_every_mutation_is_decoded_or_refused_in_time_and_memory(root):
    found = measured(root, "decode", PER_FORMAT)
    assert sum(found["outcomes"].values()) == PER_FORMAT * len(FORMATS)
    assert {"decoded", "not an image", "damaged or truncated", "too large"} <= set(found["outcomes"])
    assert found["added_mib"] < MAX_MIB


@pytest.mark.slow
def test_archives_write_nothing_outside_their_folder(root):
    found = measured(root, "extract", PER_FORMAT)
    assert sum(found["outcomes"].values()) == PER_FORMAT and set(found["outcomes"]) == {"unpacked", "refused"}
    assert found["added_mib"] < MAX_MIB


@pytest.mark.slow
@pytest.mark.parametrize("way_in", ["decode", "extract"])
def test_fuzzing_finds_nothing_in_some_seconds(way_in):
    pytest.importorskip("atheris", reason="needs atheris: pip install atheris")
    row = fuzz.fuzz(way_in, 0.1)
    assert row["found"] == "nothing" and row["coverage by the corpus"] > 100 and row["peak MiB"] < MAX_MIB


def test_the_corpus_is_the_same_in_every_run_and_its_originals_are_good():
    first, second = (list(corpus.mutations("PNG", 20)) for _ in range(2))
    assert first == second and len({data for _, data in first}) == 20
    assert list(corpus.archives(4)) == list(corpus.archives(4))
    for format in FORMATS:
        for data in corpus.originals(format):
            assert images.decode(data).shape == (corpus.HEIGHT, corpus.WIDTH, 3)


@pytest.mark.slow
def test_predict_gives_a_row_for_each_and_its_neighbours_stay(model, tmp_path, capsys, neighbours):
    folder = tmp_path / "images"
    corpus.write(folder, [*corpus.every_mutation(SOME), *neighbours.items()])
    assert cli.main(["predict", str(folder), "--model", str(model), "--json"]) == 1
    printed = capsys.readouterr()
    rows = {row["path"].rpartition("/")[2]: row for row in json.loads(printed.out)}
    # a name without an image's suffix is listed where its content is an image's
    assert set(rows) <= {path.name for path in folder.iterdir()} and len(rows) > SOME
    assert "Traceback" not in printed.err
    for row in rows.values():
        assert (row["error"] is None) != (row["label"] is None)
    alone = Detector.load(model).predict(list(neighbours.values()))
    for name, expected in zip(neighbours, alone, strict=True):
        assert rows[name]["p_fake"] == pytest.approx(expected.p_fake, abs=1e-6)


@pytest.mark.slow
def test_download_lists_each_file_and_keeps_the_good_ones(tmp_path, shipped, neighbours):
    data = tmp_path / "data"
    # an image in both classes is refused
    others = {name: png(1, 10 + number) for number, name in enumerate(neighbours)}
    for name, own in (("real", neighbours), ("fake", others)):
        corpus.write(data / name, [*corpus.every_mutation(SOME), *own.items()])
    # the others, with an odd number, are damaged and end the stage
    good = [(name, content) for name, content in corpus.archives(60) if int(name[8:12]) % 2 == 0]
    corpus.write(data, good)
    settings = replace(shipped.download, source="data", max_megapixels=64.0)
    built = manifest.build(sources.collect(settings, data, tmp_path / "work"), tmp_path / "raw", settings, workers=2)
    kept, refused = set(built.manifest["path"]), set(built.rejects["source"])
    for name in ("real", "fake"):
        assert {f"{name}/{one}" for one in neighbours} <= kept
    assert built.rejects["reason"].str.len().gt(0).all()
    assert not any("\n" in text for text in built.rejects["source"]) and len(refused) > 100
    assert all((tmp_path / "raw" / path).is_file() for path in kept)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "raw", "work"]


def test_the_served_model_answers_each(model):
    served = FakeFaceDetector()
    served.load_context(SimpleNamespace(artifacts={"detector": str(model)}))
    contents = [data for _, data in corpus.every_mutation(SOME)]
    texts = [base64.b64encode(data).decode() for data in contents]
    texts += [
        None,
        3,
        "",
        "data:image/png;base64,",
        "%%%",
        "A" * 100_000,
        "data:text/html;base64,PGh0bWw+",
        "\0",
        "é" * 9,
    ]
    records = served.predict(None, pd.DataFrame({"image": texts}))
    assert len(records) == len(texts)
    assert all(("error" in record) == (record["label"] is None) for record in records)
    assert all("error" in record for record in records[len(contents) :])
    json.dumps(records, allow_nan=False)


@pytest.mark.slow
def test_the_demo_shows_a_sentence_for_each(model):
    files = list(corpus.every_mutation(SOME))
    found = list(Analyser(model).analyse(iter(files), stability=True))
    assert len(found) == len(files)
    for result in found:
        assert (result.row["error"] is None) == (result.pixels is not None)
        assert result.heat is None or np.isfinite(result.heat).all()
