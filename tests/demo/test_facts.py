import shutil

import helpers
import yaml

from dfganext.demo import facts
from dfganext.inference.detector import Detector
from dfganext.inference.operating_point import NOT_CALIBRATED
from dfganext.report.text import SAMPLE, SAMPLE_WARNING
from dfganext.tracking import registry


def test_of_the_champion(here, run_id):
    helpers.promote("good", run_id, tags={"test.accuracy": "0.920000"})
    uri = registry.pinned(None)
    with registry.resolve(uri) as folder:
        detector = Detector.load(folder)
        found = facts.read(uri, folder, detector, champion=True)
        assert found.card is None and found.notes == ()
        (folder.parent.parent / "README.md").write_text("---\ntags: [a]\n---\n# A card\n")
        assert facts.read(uri, folder, detector).card == "# A card\n"
    known = dict(found.rows)
    assert known["model"] == "models:/df-ganext/1, the champion"
    assert known["trained on"] == "2 images"
    assert known["data set"].startswith("sha256 ")
    assert known["measured accuracy"] == "92.00 % of the images of the test split got the right label"
    assert known["promotion"].startswith("There was no champion; roc_auc ")
    assert found.summary == "accuracy 92.00 % on its test images"


def test_of_a_folder(model):
    detector = Detector.load(model)
    found = facts.read("model", model, detector)
    assert dict(found.rows) == {
        "model": "model",
        "network": "test_convnext, 32 × 32 pixels, loss bce",
        "decision threshold": "0.45, chosen on the validation split",
    }
    assert found.summary == "" and found.rule == detector.decision
    assert found.card == "# A small model\n\n![badge](https://example.org/a.png)\n"


def test_of_an_exported_folder_with_a_card(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "exported")
    result = {"dataset": {"name": SAMPLE}, "metrics": [{"type": "accuracy", "value": 0.97}]}
    metadata = yaml.safe_dump({"model-index": [{"results": [result]}]})
    (folder / "README.md").write_text(f"---\n{metadata}---\n\n# A card\n")
    found = facts.read("exported", folder, Detector.load(folder))
    assert found.summary == "accuracy 97.00 % on its test images" and dict(found.rows)["trained on"] == SAMPLE
    assert found.notes == (SAMPLE_WARNING,)


def test_a_readme_above_a_folder_is_not_its_model_card(model, tmp_path):
    shutil.copytree(model, tmp_path / "other", ignore=shutil.ignore_patterns("README.md"))
    (tmp_path / "README.md").write_text("of something else")
    assert facts.read("other", tmp_path / "other", Detector.load(tmp_path / "other")).card is None


def test_a_model_without_a_temperature_has_a_note(model):
    assert facts.read("model", model, Detector(*_parts(model), 0.5, None)).notes == (NOT_CALIBRATED,)


def _parts(folder):
    detector = Detector.load(folder)
    return detector.model, detector.config
