"""The check stage: which data.dvc files and settings it refuses."""

import importlib.util
import json
import re

import pytest

from dfganext import paths, versions
from dfganext.errors import UserError
from stages import check

OUT = "outs:\n- md5: bbb.dir\n  path: data\n"


@pytest.fixture
def workspace(tmp_path, monkeypatch, root):
    (tmp_path / "params.yaml").write_bytes((root / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


ACCEPTED = {
    "dvc add": OUT,
    "the import as shipped": f"deps:\n- md5: bbb.dir\n  path: samples\n{OUT}",
    "dvc import": f"deps:\n- path: samples\n  repo:\n    url: ../other\n    rev_lock: 0a1b\n{OUT}",
    "dvc import-url of an object store": f"deps:\n- etag: '\"abc\"'\n  path: s3://bucket/faces\n{OUT}",
    "no dependency": f"deps: []\n{OUT}",
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_an_import_that_keeps_the_images_is_accepted(workspace, case):
    (workspace / "data.dvc").write_text(ACCEPTED[case])
    check.main()


def test_an_import_that_would_overwrite_the_images_is_refused(workspace):
    (workspace / "data.dvc").write_text(f"deps:\n- md5: aaa.dir\n  path: samples\n{OUT}")
    with pytest.raises(
        UserError, match=r"data\.dvc imports samples/, .* run `dvc remove data\.dvc`, then `dvc add data`"
    ):
        check.main()


@pytest.mark.parametrize("content", [b"", b"outs: [", b"- 1\n", b"outs: []\n", b"outs:\n- data\n", b"\xff\xfe\0o"])
def test_a_file_that_dvc_cannot_read(workspace, content):
    (workspace / "data.dvc").write_bytes(content)
    with pytest.raises(
        UserError, match=r"data\.dvc is not a file that DVC can read: restore it with `git checkout data\.dvc`"
    ):
        check.main()


def test_an_engine_that_is_not_installed_is_named_before_anything_runs(workspace, monkeypatch):
    (workspace / "data").mkdir()
    params = workspace / "params.yaml"
    params.write_text(params.read_text().replace("engine: torch", "engine: openvino"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"OpenVINO is not installed: pip install 'df-ganext\[openvino\]'"):
        check.main()
    params.write_text(params.read_text().replace("engine: openvino", "engine: torch"))
    check.main()


def test_bfloat16_needs_an_engine_that_has_it(workspace):
    (workspace / "data").mkdir()
    params = workspace / "params.yaml"
    text = params.read_text().replace("engine: torch", "engine: onnxruntime")
    params.write_text(
        text.replace("  precision: float32     # of the served", "  precision: bfloat16     # of the served")
    )
    with pytest.raises(
        UserError, match=r"params\.yaml: promote\.engine: onnxruntime computes in float32; set promote\.precision"
    ):
        check.main()


def test_without_data_dvc_the_folder_is_enough(workspace, capsys):
    with pytest.raises(UserError, match=r"data\.dvc and data/ are both missing: .*`dvc add data`"):
        check.main()
    (workspace / "data").mkdir()
    check.main()
    assert "run `dvc add data`" in capsys.readouterr().err


def with_weights(workspace, weights: str) -> None:
    (workspace / "data.dvc").write_text(OUT)
    file = workspace / "params.yaml"
    file.write_text(re.sub(r"(  weights: )\S+", rf"\g<1>{weights}", file.read_text(), count=1))
    check.main()


def test_the_weights_file_is_linked_so_that_dvc_compares_its_content(workspace, tmp_path_factory):
    weights = tmp_path_factory.mktemp("elsewhere") / "w.pth"
    weights.write_bytes(b"first")
    with_weights(workspace, str(weights))
    assert paths.WEIGHTS.is_symlink() and paths.WEIGHTS.read_bytes() == b"first"
    weights.write_bytes(b"second")
    assert paths.WEIGHTS.read_bytes() == b"second"
    for setting in ("imagenet", "random"):
        with_weights(workspace, setting)
        assert not paths.WEIGHTS.is_symlink() and paths.WEIGHTS.read_text() == f"{setting}\n"
    assert weights.read_bytes() == b"second", "the file itself is never written to"


def test_the_teachers_weights_are_linked_too(workspace, tmp_path_factory):
    weights = tmp_path_factory.mktemp("teacher") / "model.safetensors"
    weights.write_bytes(b"teacher")
    with_weights(workspace, "random")
    assert paths.TEACHER.read_text() == "null\n"
    file = workspace / "params.yaml"
    text = file.read_text().replace("    architecture: null", "    architecture: resnet18")
    file.write_text(text.replace("    weights: null", f"    weights: {weights}"))
    check.main()
    assert paths.TEACHER.is_symlink() and paths.TEACHER.read_bytes() == b"teacher"
    weights.unlink()
    with pytest.raises(UserError, match=r"^convnext\.teacher\.weights: \S+model\.safetensors is not a file"):
        check.main()
    assert paths.WEIGHTS.read_text() == "random\n"


def test_a_missing_weights_file_is_named(workspace):
    with pytest.raises(UserError, match=r"convnext\.weights: gone\.pth is not a file; give random, imagenet"):
        with_weights(workspace, "gone.pth")


def test_library_versions_are_written(workspace):
    (workspace / "data.dvc").write_text(OUT)
    check.main()
    assert json.loads(paths.VERSIONS.read_text()) == versions.installed()
