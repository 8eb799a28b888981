import json

import pytest

from dfganext import versions
from dfganext.errors import UserError


def test_installed_versions_are_releases_without_the_build(monkeypatch):
    monkeypatch.setattr(versions.metadata, "version", lambda name: {"torch": "2.15.0+cpu"}.get(name, "1.0"))
    found = versions.installed()
    assert found["torch"] == "2.15.0" and set(found) == set(versions.LIBRARIES)


def test_a_stage_refuses_to_run_with_other_versions_than_recorded(tmp_path):
    file = tmp_path / "versions.json"
    versions.require_recorded(file)  # a stage run by hand, without `check`
    file.write_text(json.dumps(versions.installed()))
    versions.require_recorded(file)
    file.write_text(json.dumps(versions.installed() | {"timm": "0.1"}))
    with pytest.raises(UserError, match=rf"has timm 0\.1, but {versions.installed()['timm']} is installed: run"):
        versions.require_recorded(file)
