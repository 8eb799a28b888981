from pathlib import Path

import pandas as pd
import pytest
from helpers import detector, enter_root, promote

import dfganext
from dfganext import files
from dfganext.errors import UserError
from dfganext.tracking import registry, store


@pytest.mark.parametrize(
    "uri", ["models:/", "models:/df-ganext", "models:/df-ganext/abc", "runs:/abc", "http://host/x"]
)
def test_an_invalid_uri_is_refused(here, uri):
    with pytest.raises(UserError, match=f"{uri} is not the URI of a model: give"), registry.resolve(uri):
        pass


def test_make_serve_says_that_there_is_no_champion(here, run_id, capsys):
    with pytest.raises(UserError, match=r"There is no champion in .*make repro"):
        registry.main()
    promote("good", run_id)
    registry.main()
    assert "models:/df-ganext/1 is the champion" in capsys.readouterr().out


def test_resolve_finds_detectors_wherever_they_are(here, run_id):
    with (
        pytest.raises(UserError, match=r"no model models:/df-ganext@champion .*make repro"),
        registry.resolve(registry.CHAMPION_URI),
    ):
        pass
    promote("good", run_id)
    client, _ = store.connect()
    client.log_artifacts(run_id, "good", "weights")
    weights = files.sha256_of("good/model.safetensors")
    for uri in (registry.CHAMPION_URI, "models:/df-ganext/1", f"runs:/{run_id}/weights", "good", str(here / "good")):
        with registry.resolve(uri) as folder:
            assert files.sha256_of(folder / "model.safetensors") == weights, uri
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


def test_a_version_holds_the_code_that_it_imports_and_no_other(tmp_path):
    folder = detector(tmp_path / "detector", good=True)
    contents = registry.Contents(folder, folder / "operating_point.json", pd.DataFrame({"sha256": ["0" * 64]}))
    registry.save_model(tmp_path / "model", contents)
    copied = {
        path.relative_to(tmp_path / "model" / "code").as_posix() for path in (tmp_path / "model/code").rglob("*.py")
    }
    assert {"dfganext/images.py", "dfganext/inference/pyfunc.py", "dfganext/explain/gradcam.py"} <= copied
    assert not {name for name in copied if name.startswith(("dfganext/report/", "dfganext/tracking", "dfganext/data/"))}
    assert pd.read_csv(tmp_path / "model" / "artifacts" / registry.TRAINED_ON_FILE, dtype=str).sha256.tolist() == [
        "0" * 64
    ]


def test_the_identity_covers_weights_config_operating_point_code_and_requirements(tmp_path, monkeypatch):
    folder = detector(tmp_path / "detector", good=True)
    contents = registry.Contents(folder, folder / "operating_point.json", pd.DataFrame({"sha256": ["0" * 64]}))
    before = contents.identity()
    assert contents.identity() == before and len(before) == 5
    assert registry.Contents(folder, contents.operating_point, pd.DataFrame({"sha256": []})).identity() == before

    def changed() -> list[str]:
        return [name for name, sha256 in contents.identity().items() if sha256 != before[name]]

    config = folder / "config.json"
    text = config.read_text()
    config.write_text(text + " ")
    assert changed() == ["config.sha256"]
    config.write_text(text)
    with monkeypatch.context() as patch:
        patch.setattr(registry.metadata, "version", lambda name: "9.9")
        assert changed() == ["requirements.sha256"]
    real = registry.served_code()
    other = tmp_path / "images.py"
    other.write_text((Path(dfganext.__file__).parent / "images.py").read_text() + "# another\n")
    monkeypatch.setattr(registry, "served_code", lambda: real | {"images.py": other})
    assert changed() == ["code.sha256"]


def test_a_version_keeps_its_card_and_is_described_by_it(here, run_id):
    promote("good", run_id)
    client, _ = store.connect()
    with registry.resolve("models:/df-ganext/1") as folder:
        assert registry.card(folder) is None
    before = client.get_model_version(registry.MODEL, "1").tags
    for text in ("# first", "# second"):
        registry.attach_card("1", f"---\na: 1\n---\n{text}", text)
        with registry.resolve("models:/df-ganext/1") as folder:
            assert registry.card(folder) == f"---\na: 1\n---\n{text}"
            assert registry.trained_on(folder) is not None
        assert client.get_model_version(registry.MODEL, "1").description == text
    assert client.get_model_version(registry.MODEL, "1").tags == before


def test_a_card_that_lies_above_a_folder_is_not_its_card(here):
    Path("models").mkdir()
    Path("good").rename("models/good")
    Path("README.md").write_text("of a repository")
    assert registry.card(here / "models" / "good") is None
    Path("models/good/README.md").write_text("its own")
    assert registry.card(here / "models" / "good") == "its own"
