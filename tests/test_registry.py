import json
import shutil
import subprocess
import sys
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import detector, enter_root, faces
from PIL import Image

from dfganext import registry, tracking
from dfganext.detector import Detector
from dfganext.errors import UserError
from dfganext.settings import Promote
from dfganext.training import compute

SETTINGS = Promote("roc_auc", ("test_convnext.with_weights",), "float32")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A root with images, a good and a bad detector and, after the first test, a store."""
    with pytest.MonkeyPatch.context() as patch:
        folder = enter_root(tmp_path_factory.mktemp("made"), patch)
        faces(folder)
        detector(folder / "good", good=True)
        detector(folder / "bad", good=False)
    return folder


@pytest.fixture
def here(made, monkeypatch):
    """That root as working directory, with no model registered."""
    enter_root(made, monkeypatch)
    with suppress(tracking.NotFoundError):
        tracking.connect()[0].delete_registered_model(registry.MODEL)
    return made


@pytest.fixture
def run_id(here):
    client, experiment = tracking.connect()
    return client.create_run(experiment, run_name="promote").info.run_id


def promote(name, run_id, settings=SETTINGS, **tags):
    folder = Path(name)
    return registry.promote(
        folder, folder / "operating_point.json", Path("split.csv"), Path("raw"), settings, run_id, tags
    )


def tags_of(version):
    return tracking.connect()[0].get_model_version(registry.MODEL, version).tags


def test_the_better_becomes_champion_and_the_worse_is_told_why(here, run_id):
    first, second, third = promote("bad", run_id), promote("good", run_id, dataset="abc"), promote("bad", run_id)
    assert [one.outcome for one in (first, second, third)] == ["promoted", "promoted", "refused"]
    assert [one.version for one in (first, second, third)] == ["1", "2", "1"]  # the same weights are the same version
    assert first.champion_score is None
    assert second.champion_score == first.score < 0.5 < second.score == third.champion_score
    assert registry.champion().version == 2
    refused, promoted = tags_of("1"), tags_of("2")
    assert refused["promotion"] == "refused"
    assert f"{first.score:.4f}" in refused["promotion.reason"]
    assert f"{second.score:.4f} of version 2" in refused["promotion.reason"]
    assert promoted["promotion"] == "promoted"
    assert promoted["weights.sha256"] == tracking.sha256_of("good/model.safetensors")
    assert promoted["operating_point.sha256"] == tracking.sha256_of("good/operating_point.json")
    assert promoted["architecture"] == "test_convnext"
    assert promoted["trained_by"] == run_id
    assert promoted["dataset"] == "abc"

    again = promote("good", run_id)
    assert (again.outcome, again.version, again.champion) == ("champion", "2", "2")

    shutil.copytree("good", "other")
    Path("other/operating_point.json").write_text(json.dumps({"threshold": 0.4, "temperature": 1.0}))
    equal = promote("other", run_id)  # another operating point is another version; equal is not better
    assert (equal.outcome, equal.version, equal.champion) == ("refused", "3", "2")


def test_a_faster_precision_is_part_of_the_version_and_gives_the_same_answers(here, run_id):
    fast = replace(SETTINGS, precision="bfloat16")
    first, second = promote("good", run_id), promote("good", run_id, fast)
    assert (first.version, second.version) == ("1", "2")
    images = registry.validation_images(here / "split.csv", here / "raw")
    p_fake = {}
    for version in ("1", "2"):
        with registry.resolve(f"models:/{registry.MODEL}/{version}") as folder:
            loaded = Detector.load(folder)
            p_fake[loaded.precision] = registry.probabilities_of(loaded, images)
    np.testing.assert_allclose(p_fake["bfloat16"], p_fake["float32"], rtol=0, atol=1e-3)
    native = compute.precision("auto", torch.device("cpu")) == torch.bfloat16
    assert np.array_equal(p_fake["bfloat16"], p_fake["float32"]) is not native


def test_a_precision_that_changes_the_answers_is_refused(here, run_id, monkeypatch):
    monkeypatch.setattr(registry, "SAME_ANSWER", -1.0)
    with pytest.raises(UserError, match=r"promote\.precision: bfloat16 moves p_fake by up to .* set it to float32"):
        promote("good", run_id, replace(SETTINGS, precision="bfloat16"))
    assert registry.champion() is None


def test_other_architectures_are_registered_but_never_champion(here, run_id):
    result = promote("good", run_id, Promote("roc_auc", ("convnext_tiny",), "float32"))
    assert (result.outcome, result.champion) == ("refused", None)
    assert "promote.architectures" in tags_of("1")["promotion.reason"]
    assert registry.champion() is None


def test_a_champion_whose_files_are_gone_is_replaced_with_a_warning(here, run_id):
    promote("good", run_id)
    shutil.rmtree(here / "mlruns")
    with pytest.warns(UserWarning, match="models:/df-ganext/1 cannot be loaded"):
        result = promote("bad", run_id)
    assert (result.outcome, result.champion) == ("promoted", "2")
    assert "could not be loaded" in result.reason


@pytest.mark.parametrize("harm", [shutil.rmtree, lambda folder: cut(folder / "artifacts/detector/model.safetensors")])
def test_the_same_candidate_takes_the_place_of_its_damaged_version(here, run_id, harm):
    promote("bad", run_id), promote("good", run_id)
    for version, champion in (("2", "3"), ("1", "3"), ("3", "5")):
        (folder,) = (here / "mlruns" / "models").glob(f"{model_id(version)}/artifacts")
        harm(folder)
        with pytest.warns(UserWarning, match=f"models:/df-ganext/{version} cannot be loaded"):
            result = promote("bad" if version == "1" else "good", run_id)
        assert result.champion == champion
        with registry.resolve(registry.CHAMPION_URI) as loaded:
            Detector.load(loaded)


def cut(file):
    file.write_bytes(file.read_bytes()[:1000])


def model_id(version):
    return tracking.connect()[0].get_model_version(registry.MODEL, version).source.removeprefix("models:/")


@pytest.mark.parametrize(
    "uri", ["models:/", "models:/df-ganext", "models:/df-ganext/abc", "runs:/abc", "http://host/x"]
)
def test_what_is_no_address_is_told_as_that(here, uri):
    with pytest.raises(UserError, match=f"{uri} is no address of a model: give"), registry.resolve(uri):
        pass


def test_images_within_the_limits_of_download_can_be_compared_on(made, tmp_path):
    """The served model's own limits are narrower than those that a data set may have."""
    small = tmp_path / "small.png"
    Image.new("RGB", (8, 8), "grey").save(small)
    one = Detector.load(made / "good")
    assert one.judge([small.read_bytes()])[0].error is not None
    assert 0 < registry.probabilities_of(one, [(small, 0)])[0] < 1


def test_make_serve_says_that_there_is_no_champion(here, run_id, capsys):
    with pytest.raises(UserError, match=r"There is no champion in .*make repro"):
        registry.main()
    promote("good", run_id)
    registry.main()
    assert "models:/df-ganext/1 is the champion" in capsys.readouterr().out


def test_a_champion_that_the_store_fails_to_hand_over_stays(here, run_id, monkeypatch):
    promote("good", run_id)

    def fails(*_):
        raise tracking.StoreError("The tracking store http://host cannot be used.")

    monkeypatch.setattr(registry, "_download", fails)
    with pytest.raises(UserError, match="http://host"):
        promote("bad", run_id)
    assert registry.champion().version == 1


@pytest.mark.parametrize(
    ("metric", "score", "than", "expected"),
    [
        ("roc_auc", 0.9, 0.8, True),
        ("roc_auc", 0.8, 0.8, False),
        ("log_loss", 0.1, 0.2, True),
        ("log_loss", 2, 1, False),
    ],
)
def test_better_is_strict_and_knows_the_direction(metric, score, than, expected):
    assert registry.better(score, than, metric) is expected


def test_scores_against_a_slow_reference(made, monkeypatch):
    monkeypatch.setattr(registry, "BATCH", 7)
    images = registry.validation_images(made / "split.csv", made / "raw")
    assert len(images) == 40
    one = Detector.load(made / "good")
    p = np.array([one.judge([path.read_bytes()])[0].p_fake for path, _ in images])
    fake = np.array([label for _, label in images]) == 1
    ranked = np.mean([(a > b) + 0.5 * (a == b) for a in p[fake] for b in p[~fake]])
    np.testing.assert_allclose(registry.probabilities_of(one, images), p, rtol=0, atol=1e-6)
    assert registry.score_of(one, images, p, "roc_auc") == pytest.approx(ranked)
    assert registry.score_of(one, images, p, "accuracy") == pytest.approx(np.mean((p > 0.5) == fake))
    assert registry.score_of(one, images, p, "log_loss") == pytest.approx(-np.mean(np.log(np.where(fake, p, 1 - p))))


def test_what_cannot_be_scored_is_named(made, tmp_path):
    with pytest.raises(UserError, match=r"real/0\.png is missing"):
        registry.probabilities_of(Detector.load(made / "good"), [(tmp_path / "real/0.png", 0)])
    table = [row for row in (made / "split.csv").read_text().splitlines() if ",fake," not in row]
    (tmp_path / "split.csv").write_text("\n".join(table) + "\n")
    with pytest.raises(UserError, match="no validation images of both classes"):
        registry.validation_images(tmp_path / "split.csv", made / "raw")


PROMOTE = """
import sys
from pathlib import Path
from dfganext import registry
from dfganext.settings import Promote
from dfganext.training import compute
folder = Path(sys.argv[1])
print(registry.promote(folder, folder / "operating_point.json", Path("split.csv"), Path("raw"),
                       Promote("roc_auc", ("test_convnext",), "float32"), sys.argv[2]))
"""


def test_two_promotions_at_once_leave_the_better(here, run_id):
    both = [
        subprocess.Popen([sys.executable, "-c", PROMOTE, name, run_id], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for name in ("good", "bad")
    ]
    ends = [one.communicate() for one in both]
    assert [one.returncode for one in both] == [0, 0], ends
    assert tags_of(registry.champion().version)["weights.sha256"] == tracking.sha256_of("good/model.safetensors")


@pytest.mark.parametrize(("early", "late"), [("good", "bad"), ("bad", "good")])
def test_where_no_lock_reaches_the_better_of_two_rivals_wins(here, run_id, monkeypatch, early, late):
    """Another machine promotes `early` after this one has looked for a champion and before it takes the alias."""
    monkeypatch.setattr(tracking, "store_lock", lambda purpose="setup": nullcontext())
    champion = registry._champion
    looks = []

    def looks_too_soon(client):
        found = champion(client)
        if not looks:
            looks.append(1)
            promote(early, run_id)
        return found

    monkeypatch.setattr(registry, "_champion", looks_too_soon)
    promote(late, run_id)
    assert tags_of(champion(tracking.connect()[0]).version)["weights.sha256"] == tracking.sha256_of(
        "good/model.safetensors"
    )


def test_a_rival_that_comes_after_the_last_look_is_not_overruled(here, run_id, monkeypatch):
    """Another machine promotes the better one after this one has looked for rivals and before it does anything else."""
    monkeypatch.setattr(tracking, "store_lock", lambda purpose="setup": nullcontext())
    versions = registry._versions
    looks = []

    def looks_too_soon(client, tags):
        found = versions(client, tags)
        if "promotion" in tags and not looks:
            looks.append(1)
            promote("good", run_id)
        return found

    monkeypatch.setattr(registry, "_versions", looks_too_soon)
    promote("bad", run_id)
    assert looks and tags_of(registry.champion().version)["weights.sha256"] == tracking.sha256_of(
        "good/model.safetensors"
    )


def test_resolve_finds_detectors_wherever_they_are(here, run_id):
    with (
        pytest.raises(UserError, match=r"no model models:/df-ganext@champion .*make repro"),
        registry.resolve(registry.CHAMPION_URI),
    ):
        pass
    promote("good", run_id)
    client, _ = tracking.connect()
    client.log_artifacts(run_id, "good", "weights")
    weights = tracking.sha256_of("good/model.safetensors")
    for uri in (registry.CHAMPION_URI, "models:/df-ganext/1", f"runs:/{run_id}/weights", "good", str(here / "good")):
        with registry.resolve(uri) as folder:
            assert tracking.sha256_of(folder / "model.safetensors") == weights, uri
            assert (folder / "operating_point.json").is_file()
    for uri in ("models:/df-ganext@runner-up", "models:/df-ganext/9", "models:/other/1"):
        with pytest.raises(UserError, match=f"no model {uri}"), registry.resolve(uri):
            pass
    with pytest.raises(UserError, match="raw holds no detector"), registry.resolve("raw"):
        pass


def test_an_alias_is_pinned_to_the_version_it_stands_for(here, run_id):
    from dfganext.scoring import model

    assert registry.pinned(registry.CHAMPION_URI) == registry.CHAMPION_URI  # there is none: resolve says so
    promote("bad", run_id), promote("good", run_id)
    assert registry.pinned(registry.CHAMPION_URI) == "models:/df-ganext/2"
    for uri in ("models:/df-ganext@runner-up", "models:/df-ganext/1", f"runs:/{run_id}/weights", "good"):
        assert registry.pinned(uri) == uri
    champion, folder = model.load(None), model.load("good")
    assert champion.version == "models:/df-ganext/2"
    assert folder.version == f"sha256:{folder.sha256[:16]}"
    assert champion.sha256 == folder.sha256 != model.load("bad").sha256


def test_looking_for_a_model_makes_no_store(tmp_path, monkeypatch):
    enter_root(tmp_path, monkeypatch)
    with pytest.raises(UserError, match="make repro"), registry.resolve(registry.CHAMPION_URI):
        pass
    assert not (tmp_path / "mlflow.db").exists()
