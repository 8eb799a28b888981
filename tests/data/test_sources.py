"""Each source brings its images: the folder, archives in it, Kaggle and the hub (their own clients, another server), an address."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from contextlib import nullcontext
from pathlib import Path, PurePosixPath

import pandas as pd
import pytest
from filelock import FileLock, Timeout

from dfganext import paths
from dfganext.data import manifest, sources
from dfganext.data.discovery import label_of
from dfganext.errors import UserError
from dfganext.tracking import runs
from stages import download as stage


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in files.items():
            file.writestr(name, data)
    return buffer.getvalue()


def put(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def labelled(collection: sources.Collection) -> dict[str, str | None]:
    """{source: label} of every file found."""
    return {file.source: label_of(file.path) for file in collection.files}


def test_the_class_is_the_nearest_folder_called_real_or_fake():
    labels = {
        "real/1.jpg": "real",
        "FAKE/deep/down/1.jpg": "fake",
        "real/vs/Fake/1.jpg": "fake",
        "real_vs_fake/real-vs-fake/1.jpg": None,
        "real_vs_fake/train/real/1.jpg": "real",
        "x/fake": None,
        "1.jpg": None,
    }
    assert {path: label_of(PurePosixPath(path)) for path in labels} == labels


def test_a_tree_archives_of_trees_and_a_mixture(tmp_path, download):
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:gz") as file:
        member = tarfile.TarInfo("7.png")
        member.size = 1
        file.addfile(member, io.BytesIO(b"7"))
    files = {
        "train/real/1.png": b"1",
        "more.zip": zipped({"fake/2.png": b"2", "../fake/3.png": b"3"}),
        "Real/part.zip": zipped({"4.png": b"4"}),
        "fake.tar.gz": tar.getvalue(),
        "nested.zip": zipped({"real/inner.zip": zipped({"5.png": b"5"})}),
    }
    data = put(tmp_path / "data", files)
    collection = sources.collect(download(), data, tmp_path / "work")
    assert labelled(collection) == {
        "data/train/real/1.png": "real",
        "data/more.zip/fake/2.png": "fake",
        "data/Real/part.zip/4.png": "real",
        "data/fake.tar.gz/7.png": "fake",
        "data/nested.zip/real/inner.zip": "real",
    }
    assert [reject.source for reject in collection.rejects] == ["data/more.zip/../fake/3.png"]
    assert {str(path.relative_to(data)) for path in data.rglob("*") if path.is_file()} == set(files)
    again = sources.collect(download(), data, tmp_path / "work")
    assert labelled(again) == labelled(collection)


def test_of_two_downloads_at_once_one_waits(tmp_path, capsys):
    began, order = threading.Event(), []

    def other():
        began.set()
        with sources.exclusive(tmp_path / "work"):
            order.append("other")

    with sources.exclusive(tmp_path / "work"):
        waiting = threading.Thread(target=other)
        waiting.start()
        began.wait()
        time.sleep(0.2)
        order.append("this")
    waiting.join()
    assert order == ["this", "other"] and "waiting until another experiment" in capsys.readouterr().out


def test_the_stage_excludes_others_until_its_images_are_in_place(tmp_path, monkeypatch, shipped):
    def build(*_):
        with pytest.raises(Timeout):
            FileLock(paths.work() / sources.LOCK).acquire(timeout=0)
        raise UserError("seen")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "stage_run", lambda *_, **__: nullcontext())
    monkeypatch.setattr(sources, "collect", lambda *_: None)
    monkeypatch.setattr(manifest, "build", build)
    monkeypatch.setattr(stage, "load_settings", lambda: shipped)
    with pytest.raises(UserError, match="seen"):
        stage.main()


@pytest.mark.parametrize("state", ["missing", "empty", "only .gitignore"])
def test_no_data_says_how_to_get_some(tmp_path, download, state):
    if state != "missing":
        (tmp_path / "data").mkdir()
    if state == "only .gitignore":
        (tmp_path / "data/.gitignore").touch()
    with pytest.raises(
        UserError, match=r"data/ is missing or empty: run `dvc pull` or `dvc update data\.dvc`.*`dvc add data`"
    ):
        sources.collect(download(), tmp_path / "data", tmp_path / "work")


def test_a_damaged_archive_is_named(tmp_path, download):
    put(tmp_path / "data", {"real/1.png": b"1", "more.zip": b"no zip"})
    with pytest.raises(UserError, match=r"^data/more\.zip is damaged or neither"):
        sources.collect(download(), tmp_path / "data", tmp_path / "work")


def images_table(tmp_path, **columns) -> Path:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    (tmp_path / "data").mkdir(parents=True)
    parquet.write_table(pa.table(columns), tmp_path / "data/faces.parquet", compression="none", use_dictionary=False)
    return tmp_path / "data/faces.parquet"


def test_a_table_with_damaged_pages_is_named(tmp_path, download):
    images = [{"bytes": bytes([number]) * 100, "path": None} for number in range(40)]
    path = images_table(tmp_path, image=images, label=["real", "fake"] * 20)
    data = bytearray(path.read_bytes())
    data[4:600] = b"\xff" * 596
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"^data/faces\.parquet cannot be unpacked \(.*\): make or fetch it again"):
        sources.collect(download(), tmp_path / "data", tmp_path / "work")


@pytest.mark.parametrize("label", [["real"], {"name": "real"}])
def test_a_label_that_is_not_text_is_neither_class(tmp_path, download, label):
    images_table(tmp_path, image=[{"bytes": b"a", "path": None}], label=[label])
    (reject,) = sources.collect(download(), tmp_path / "data", tmp_path / "work").rejects
    assert (reject.source, reject.reason) == ("data/faces.parquet/row 0", "neither real nor fake")


def test_images_of_a_table_that_are_texts(tmp_path, download):
    images = [{"bytes": "text", "path": "1.png"}]
    images_table(tmp_path, image=images, label=["real"])
    (reject,) = sources.collect(download(), tmp_path / "data", tmp_path / "work").rejects
    assert reject.reason == "not an image"


# an address


def test_an_archive_at_a_url(tmp_path, download, server):
    server.body = zipped({"set/real/1.png": b"1", "set/fake/2.png": b"2", "/set/fake/3.png": b"3"})
    settings = download(
        source="url", url=f"{server.url}/faces.zip?key=1", sha256=hashlib.sha256(server.body).hexdigest()
    )
    for _ in range(2):
        collection = sources.collect(settings, tmp_path / "data", tmp_path / "work")
        assert labelled(collection) == {"faces.zip/set/real/1.png": "real", "faces.zip/set/fake/2.png": "fake"}
        assert len(collection.rejects) == 1
    assert len(server.requests) == 1


@pytest.mark.parametrize("missing", ["url", "sha256"])
def test_a_url_needs_both_keys(tmp_path, download, missing):
    keys = {"url": "http://127.0.0.1/a.zip", "sha256": "0" * 64} | {missing: None}
    with pytest.raises(UserError, match=r"needs both download\.url and download\.sha256"):
        sources.collect(download(source="url", **keys), tmp_path / "data", tmp_path / "work")


# Kaggle

HANDLE = "xhlulu/140k-real-and-fake-faces"
SERVICE = "/v1/datasets.DatasetApiService"


@pytest.fixture
def kaggle(server, monkeypatch, tmp_path):
    """kagglehub itself, with nobody's credentials, talking to this machine."""
    kaggle_env = pytest.importorskip("kagglesdk.kaggle_env")
    pytest.importorskip("kagglehub")
    for name in [name for name in os.environ if name.startswith("KAGGLE")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, server.url)
    version = json.dumps({"currentVersionNumber": 2}).encode()
    server.answers[f"{SERVICE}/GetDataset"] = (200, {"Content-Type": "application/json"}, version)
    return server


def test_kaggle_with_the_layout_of_the_140k_faces(kaggle, tmp_path, download):
    below = "real_vs_fake/real-vs-fake"
    places = [f"{below}/{split}/{label}/0.jpg" for split in ("train", "valid", "test") for label in ("real", "fake")]
    archive = zipped(dict.fromkeys(places, b"1") | {"train.csv": b"id"})
    kaggle.answers[f"{SERVICE}/DownloadDataset"] = (200, {"Content-Type": "application/zip"}, archive)
    collection = sources.collect(download(source="kaggle", kaggle=HANDLE), tmp_path / "data", tmp_path / "work")
    expected = {f"{HANDLE}/{place}": place.split("/")[-2] for place in places}
    assert labelled(collection) == expected | {f"{HANDLE}/train.csv": None}
    assert [path for path, _ in kaggle.requests] == [f"{SERVICE}/GetDataset", f"{SERVICE}/DownloadDataset"]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_kaggle_refusing_says_what_to_check(kaggle, tmp_path, download, status):
    kaggle.answers[f"{SERVICE}/GetDataset"] = (status, {}, b"")
    with pytest.raises(UserError, match=rf"{HANDLE}.*{status}.*check download\.kaggle .*KAGGLE_USERNAME"):
        sources.collect(download(source="kaggle", kaggle=HANDLE), tmp_path / "data", tmp_path / "work")


def test_kaggle_cannot_be_reached(kaggle, tmp_path, download, monkeypatch):
    kaggle_env = sys.modules["kagglesdk.kaggle_env"]
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, "http://127.0.0.1:1")
    with pytest.raises(UserError, match=r"could not be downloaded .* and the connection") as caught:
        sources.collect(download(source="kaggle", kaggle=HANDLE), tmp_path / "data", tmp_path / "work")
    assert "\n" not in str(caught.value)


def test_an_invalid_kaggle_handle(kaggle, tmp_path, download):
    with pytest.raises(UserError, match=r"'faces' could not be downloaded .*check download\.kaggle \(owner/name\)"):
        sources.collect(download(source="kaggle", kaggle="faces"), tmp_path / "data", tmp_path / "work")


# The Hugging Face hub: its address is read at import, so its client runs in a process of its own

COMMIT = "0123456789" * 4
SCRIPT = """
import json, sys
from pathlib import Path
from dfganext.data import sources
from dfganext.data.discovery import label_of
from dfganext.errors import UserError
from dfganext.settings import Download
repository, revision, work = json.loads(sys.argv[1])
try:
    found = sources.collect(Download("huggingface", "owner/name", repository, revision, None, None, 1.0, 16), Path("data"), Path(work))
except UserError as error:
    print(json.dumps(str(error)))
else:
    seen = {file.source: [label_of(file.path), file.file.read_bytes().hex()] for file in found.files}
    print(json.dumps([seen, [reject._asdict() for reject in found.rejects]]))
"""


@pytest.fixture
def hub(server, tmp_path):
    """Collect from a hub that knows the repository owner/faces with the files given (None: not even that)."""
    pytest.importorskip("huggingface_hub")

    def collect(files: dict[str, bytes] | None, repository: str | None = "owner/faces", revision: str | None = None):
        api = "/api/datasets/owner/faces"
        kind = {"Content-Type": "application/json"}
        for path in (f"{api}/revision/main", f"{api}/revision/elsewhere"):
            server.answers[path] = (404, {"X-Error-Code": "RevisionNotFound"}, b"")
        if files is None:
            server.answers[f"{api}/revision/main"] = (404, {"X-Error-Code": "RepoNotFound"}, b"")
        else:
            info = {"id": "owner/faces", "sha": COMMIT, "siblings": [], "tags": [], "private": False, "gated": False}
            info |= {"downloads": 0, "likes": 0, "disabled": False}
            server.answers[f"{api}/revision/main"] = (200, kind, json.dumps(info).encode())
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files.items()
            ]
            server.answers[f"{api}/tree/{COMMIT}"] = (200, kind, json.dumps(entries).encode())
            for name, data in files.items():
                headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
                server.answers[f"/datasets/owner/faces/resolve/{COMMIT}/{name}"] = (200, headers, data)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        environment |= {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        arguments = json.dumps([repository, revision, str(tmp_path / "work")])
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, arguments], capture_output=True, text=True, env=environment, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return collect


def test_a_tree_and_an_archive_on_the_hub(hub):
    files = {"README.md": b"faces", "set/real/1.png": b"one", "fake.zip": zipped({"2.png": b"two"})}
    found, rejects = hub(files)
    assert found == {
        "owner/faces/README.md": [None, b"faces".hex()],
        "owner/faces/set/real/1.png": ["real", b"one".hex()],
        "owner/faces/fake.zip/2.png": ["fake", b"two".hex()],
    }
    assert rejects == []


def test_a_parquet_data_set_on_the_hub(hub):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    images = [{"bytes": b"a", "path": "a.jpg"}, {"bytes": b"b", "path": None}, {"bytes": None, "path": "c.jpg"}]
    images += [{"bytes": b"d", "path": "../../d.jpg"}, {"bytes": b"e", "path": "e.png"}]
    table = pa.table({"image": images, "label": [0, 1, 1, 1, 2], "generator": [1, 0, 0, 0, 0]})
    features = {"label": {"names": ["FAKE", "Real", "cartoon"], "_type": "ClassLabel"}}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    buffer, other = io.BytesIO(), io.BytesIO()
    parquet.write_table(table, buffer)
    pd.DataFrame({"x": [1]}).to_parquet(other)
    found, rejects = hub({"data/train-00000-of-00001.parquet": buffer.getvalue(), "other.parquet": other.getvalue()})
    name = "owner/faces/data/train-00000-of-00001.parquet"
    assert found == {
        f"{name}/fake/0000000": ["fake", b"a".hex()],
        f"{name}/real/0000001": ["real", b"b".hex()],
        f"{name}/real/0000003": ["real", b"d".hex()],
    }
    assert [(reject["source"], reject["reason"]) for reject in rejects] == [
        ("owner/faces/other.parquet", "not an image"),
        (f"{name}/row 2", "not an image"),
        (f"{name}/row 4", "neither real nor fake"),
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"files": None}, "no data set 'owner/faces' of revision 'main': check download.huggingface"),
        (
            {"files": {}, "revision": "elsewhere"},
            "no data set 'owner/faces' of revision 'elsewhere': check download.huggingface (owner/name) and download.revision",
        ),
        (
            {"files": {}, "repository": "a/b/c"},
            "no data set 'a/b/c' of revision 'main': check download.huggingface (owner/name)",
        ),
        ({"files": {}, "repository": None}, "download.huggingface is null"),
    ],
)
def test_repositories_and_revisions_that_the_hub_does_not_have(hub, arguments, words):
    assert words in hub(**arguments)


def test_the_hub_cannot_be_reached(hub, server):
    server.answers["/api/datasets/owner/other/revision/main"] = (503, {}, b"")
    message = hub({}, repository="owner/other")
    assert "could not be downloaded from the Hugging Face hub" in message
    assert "\n" not in message
