"""The check stage: which data.dvc is refused, and which is not."""

import pytest

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
def test_what_brings_back_no_other_images_is_accepted(workspace, case):
    (workspace / "data.dvc").write_text(ACCEPTED[case])
    check.main()


def test_an_import_that_would_overwrite_the_images_is_refused(workspace):
    (workspace / "data.dvc").write_text(f"deps:\n- md5: aaa.dir\n  path: samples\n{OUT}")
    with pytest.raises(
        UserError, match=r"data\.dvc imports samples/ .* run `dvc remove data\.dvc`, then `dvc add data`"
    ):
        check.main()


@pytest.mark.parametrize("content", [b"", b"outs: [", b"- 1\n", b"outs: []\n", b"outs:\n- data\n", b"\xff\xfe\0o"])
def test_a_file_that_is_none_of_dvcs(workspace, content):
    (workspace / "data.dvc").write_bytes(content)
    with pytest.raises(
        UserError, match=r"data\.dvc is no file that DVC can read: restore it with `git checkout data\.dvc`"
    ):
        check.main()


def test_without_data_dvc_the_folder_is_enough(workspace, capsys):
    with pytest.raises(UserError, match=r"data\.dvc and data/ are both missing: .*`dvc add data`"):
        check.main()
    (workspace / "data").mkdir()
    check.main()
    assert "run `dvc add data`" in capsys.readouterr().err
