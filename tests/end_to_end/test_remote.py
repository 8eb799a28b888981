"""A shared MLflow server over HTTP, on SQLite and on PostgreSQL, and a shared DVC remote. Folders stand for machines."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers import detector, enter_root, faces, free_port, log_evaluation
from processes import run_at_once
from servers import mlflow_server, postgresql

from dfganext import cli, files, paths, settings
from dfganext.errors import UserError
from dfganext.inference.detector import Detector
from dfganext.settings import Promote
from dfganext.tracking import lineage, promotion, registry, runs, store, view


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request, tmp_path_factory) -> Iterator[str]:
    """The URI of an MLflow server that the module's tests share."""
    folder = tmp_path_factory.mktemp("server")
    if request.param == "sqlite":
        with mlflow_server(folder, f"sqlite:///{folder}/server.db", free_port()) as uri:
            yield uri
    else:
        with postgresql() as database, mlflow_server(folder, database, free_port()) as uri:
            yield uri


@pytest.fixture
def remote(server, monkeypatch) -> str:
    """The server as this process's tracking store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    return server


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    """A folder with images, a good and a bad detector."""
    folder = tmp_path_factory.mktemp("material")
    faces(folder)
    detector(folder / "good", good=True)
    detector(folder / "bad", good=False)
    return folder


def machine(folder: Path, material: Path | None = None) -> Path:
    """The root of a workflow in a new folder, with a copy of `material`."""
    if material is not None:
        shutil.copytree(material, folder)
    folder.mkdir(exist_ok=True)
    (folder / "dvc.yaml").touch()
    return folder


EXECUTION = """
import sys
from dfganext import paths, settings
from dfganext.tracking import runs
values = settings.load_settings(sys.argv[1])
with runs.stage_run("train_convnext", values, reads=[paths.SPLIT], makes=["weights"]) as run:
    open("weights", "w").write(sys.argv[2])
    for step in range(20):
        run.log_metrics({"loss": float(sys.argv[2]) / (step + 1)}, step)
    run.log_artifact("weights", "models")
with runs.stage_run("gradcam", values, reads=["weights"]) as later:
    later.log_key_metrics({"accuracy": float(sys.argv[2])})
    later.set_tags({"made": later.makers["weights"] == run.id})
"""


@pytest.mark.slow
def test_two_machines_log_to_one_server_at_the_same_time(remote, root, tmp_path, monkeypatch):
    """A third machine reads the runs, their metrics over steps and their artifacts."""
    names = ("quick-fox", "Quick-Fox")
    folders = [machine(tmp_path / name) for name in names]
    for folder in folders:
        (folder / paths.SPLIT.parent).mkdir()
        (folder / paths.SPLIT).write_text("path,label,split\na,real,train\nb,fake,test\n")
    arguments = [[str(root / "params.yaml"), number] for number in ("2", "3")]
    environments = [
        {"DVC_STAGE": "any", "DVC_ROOT": str(folder), "DVC_EXP_NAME": name}
        for folder, name in zip(folders, names, strict=True)
    ]
    printed = run_at_once(EXECUTION, arguments, tmp_path, folders, environments)
    assert printed == ["", ""], "tracking prints nothing"
    for folder in folders:
        assert {path.name for path in folder.iterdir()} == {"dvc.yaml", "artifacts", "weights"}, "no local store"

    enter_root(tmp_path / "third", monkeypatch)
    client, experiment = store.connect()
    for number, name in enumerate(names, start=2):
        (parent,) = client.search_runs([experiment], f"tags.`dvc.experiment` = '{name}' and tags.execution != ''")
        below = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
        trained, explained = client.search_runs([experiment], below, order_by=["attributes.start_time ASC"])
        assert parent.data.params == settings.as_texts(settings.flatten(settings.load_settings(root / "params.yaml")))
        assert parent.data.metrics == {"accuracy": number}
        assert (trained.data.tags["stage"], explained.data.tags["stage"]) == ("train_convnext", "gradcam")
        assert explained.data.tags["made"] == "True"
        assert {run.info.status for run in (parent, trained, explained)} == {"FINISHED"}
        history = client.get_metric_history(trained.info.run_id, "loss")
        assert [(one.step, one.value) for one in history] == [(step, number / (step + 1)) for step in range(20)]
        (data,) = trained.inputs.dataset_inputs
        assert data.dataset.name == "split.csv"
        copy = client.download_artifacts(trained.info.run_id, "models", str(tmp_path))
        assert Path(copy, "weights").read_text() == str(number)
        assert explained.data.tags["made_by.weights"] == trained.info.run_id


@pytest.mark.slow
def test_evaluations_of_other_machines_are_found_by_their_split(remote, shipped, tmp_path, monkeypatch):
    enter_root(tmp_path / "one", monkeypatch)
    other, first = log_evaluation(shipped, split="b"), log_evaluation(shipped)
    enter_root(tmp_path / "two", monkeypatch)
    second = log_evaluation(shipped)
    assert [one.run_id for one in lineage.evaluations(paths.SPLIT)] == [second, first]
    log_evaluation(shipped, split="b")
    assert lineage.evaluations(paths.SPLIT)[1].run_id == other
    assert lineage.evaluations(paths.SPLIT)[1].scores == {"convnext": {"accuracy": 0.5}}


PROMOTE = """
import sys
from pathlib import Path
from dfganext.tracking import promotion, store
from dfganext.settings import Promote
client, experiment = store.connect()
run = client.create_run(experiment, run_name="promote").info.run_id
folder = Path(sys.argv[1])
rule = Promote("roc_auc", 2, ("test_convnext",), "float32", "torch")
data = promotion.Data.read(Path("split.csv"), Path("manifest.csv"), Path("raw"), 8)
print(promotion.promote(folder, folder / "operating_point.json", data, rule, run).outcome)
"""


@pytest.mark.slow
def test_two_machines_promote_at_the_same_time_and_a_third_predicts_with_the_better_model(
    remote, material, tmp_path, monkeypatch, capsys
):
    machines = [machine(tmp_path / name, material) for name in ("one", "two")]
    good, _ = run_at_once(PROMOTE, [["good"], ["bad"]], tmp_path, machines)
    assert good.strip() == "promoted"
    monkeypatch.chdir(machines[0])
    client, experiment = store.connect()
    again = promotion.promote(
        Path("bad"),
        Path("bad/operating_point.json"),
        promotion.Data.read(Path("split.csv"), Path("manifest.csv"), Path("raw"), 8),
        Promote("roc_auc", 2, ("test_convnext",), "float32", "torch"),
        client.create_run(experiment).info.run_id,
    )
    assert (again.outcome, again.champion) == ("refused", str(registry.champion().version))

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    images = [material / "raw" / "real" / "0.png", material / "raw" / "fake" / "0.png"]
    with registry.resolve(registry.CHAMPION_URI) as folder:
        predictions = Detector.load(folder).predict([image.read_bytes() for image in images])
    assert predictions == Detector.load(material / "good").predict([image.read_bytes() for image in images])
    assert cli.main(["predict", "--json", *map(str, images)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert sorted(row["p_fake"] for row in rows) == pytest.approx(sorted(one.p_fake for one in predictions))
    with (
        pytest.raises(UserError, match=r"no model models:/df-ganext/9 in http://127"),
        registry.resolve("models:/df-ganext/9"),
    ):
        pass
    assert list(elsewhere.iterdir()) == [], "reading from a server writes nothing here"


@pytest.mark.slow
def test_the_table_of_runs_shows_what_tells_runs_apart(remote, shipped, tmp_path, monkeypatch, browser):
    """In MLflow's own UI, at the address that `make ui` prints."""
    enter_root(machine(tmp_path / "root"), monkeypatch)
    with runs.stage_run("promote", shipped) as run:
        run.set_key_tags({"promotion": "as good as", "version": "1234"})
        run.log_key_metrics({"accuracy": 0.81, "roc_auc": 0.94})
    page = browser.new_page(viewport={"width": 2400, "height": 900})
    page.goto(f"{remote}{view.path(store.connect()[1])}")
    page.get_by_text("0.94", exact=True).wait_for(timeout=60_000)
    shown = page.locator("body").inner_text().splitlines()
    page.close()
    for text in ("convnext_tiny", "96", "ce", "20", "0.81", "as good as", "1234"):
        assert text in shown, shown


@pytest.mark.slow
def test_concurrent_writes_of_one_alias_or_tag_all_succeed(remote, tmp_path, monkeypatch):
    """MLflow checks that an alias or a tag is missing and then inserts it; the database refuses all inserts but the first."""
    enter_root(tmp_path, monkeypatch)
    client, experiment = store.connect()
    run = client.create_run(experiment).info.run_id
    barrier = threading.Barrier(6)
    with ThreadPoolExecutor(barrier.parties) as pool:
        for model in ("first", "second", "third"):
            client.create_registered_model(model)
            client.create_model_version(model, f"runs:/{run}/model", run_id=run)

            def write(_, model=model):
                barrier.wait()
                client.set_registered_model_alias(model, "champion", "1")
                barrier.wait()
                client.set_model_version_tag(model, "1", "promotion", "promoted")

            list(pool.map(write, range(barrier.parties)))
            version = client.get_model_version_by_alias(model, "champion")
            assert (str(version.version), version.tags) == ("1", {"promotion": "promoted"})


STAGE = """
import sys
from pathlib import Path
from dfganext import settings
from dfganext.tracking import runs, store
name, source, target = sys.argv[1:]
values = settings.load_settings()
with runs.stage_run(name, values, reads=[source], makes=[target]) as run:
    Path(target).write_text(f"{Path(source).read_text()}, {name} with {values.seed}")
    run.log_key_metrics({"seed": values.seed})
"""

PIPELINE = """
stages:
  one:
    cmd: python stage.py one start.txt one.txt
    params: [seed]
    deps: [start.txt, stage.py]
    outs: [one.txt]
  two:
    cmd: python stage.py two one.txt two.txt
    params: [seed]
    deps: [one.txt]
    outs: [two.txt]
"""


@pytest.mark.slow
@pytest.mark.parametrize("server", ["sqlite"], indirect=True)
def test_two_clones_share_files_and_runs(remote, root, tmp_path, monkeypatch):
    """One clone pulls the results of the other, runs a stage and an experiment, and pushes the experiment back."""
    identity = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = os.environ | identity | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def call(folder: Path, line: str) -> str:
        ended = subprocess.run(line.split(), cwd=folder, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, f"{line}:\n{ended.stdout}\n{ended.stderr}"
        return ended.stdout

    here, there = tmp_path / "here", tmp_path / "there"
    call(tmp_path, "git init --quiet --bare origin")
    call(tmp_path, "git clone --quiet origin here")
    for name, text in (("stage.py", STAGE), ("dvc.yaml", PIPELINE), ("start.txt", "start")):
        (here / name).write_text(text)
    shutil.copyfile(root / "params.yaml", here / "params.yaml")
    call(here, "dvc init --quiet")
    call(here, f"dvc remote add --default storage {tmp_path / 'storage'}")
    call(here, "dvc repro")
    call(here, "git add --all")
    call(here, "git commit --quiet --message first")
    call(here, "dvc push")
    call(here, "git push --quiet origin HEAD")

    call(tmp_path, "git clone --quiet origin there")
    call(there, "dvc pull")
    assert (there / "two.txt").read_text() == (here / "two.txt").read_text() == "start, one with 20, two with 20"
    assert "up to date" in call(there, "dvc repro")
    call(there, "dvc repro --force --single-item two")
    call(there, "dvc exp run --name seed-1 --set-param seed=1")
    call(there, "dvc exp push origin seed-1")
    call(here, "dvc exp pull origin seed-1")
    call(here, "dvc exp apply seed-1")
    assert (here / "two.txt").read_text() == "start, one with 1, two with 1"

    for folder in (here, there):
        assert not list(folder.glob("ml*")), "runs, artifacts and locks are on the server"
    enter_root(tmp_path / "third", monkeypatch)
    client, experiment = store.connect()
    commit = call(here, "git rev-parse HEAD").strip()
    ours = f"tags.stage = 'one' and tags.`read.start.txt` = '{files.sha256_of(here / 'start.txt')}'"
    later, first = client.search_runs([experiment], ours, order_by=["attributes.start_time DESC"])
    parent = client.get_run(later.data.tags["mlflow.parentRunId"])
    assert (parent.info.run_name, parent.data.params["seed"], parent.data.metrics) == ("seed-1", "1", {"seed": 1})
    assert parent.data.tags["dvc.baseline"] == commit
    from_there = f"tags.`made_by.one.txt` = '{first.info.run_id}' and tags.`mlflow.source.git.commit` = '{commit}'"
    (again,) = client.search_runs([experiment], from_there)
    assert again.data.tags["stage"] == "two", "the stage names the other clone's run that made its pulled input"


@pytest.mark.slow
def test_error_names_a_server_that_stops_during_a_stage_and_outputs_stay(tmp_path, shipped, monkeypatch):
    folder, port = tmp_path / "server", free_port()
    folder.mkdir()
    enter_root(tmp_path / "root", monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    database = f"sqlite:///{folder}/server.db"
    with ExitStack() as servers, pytest.raises(UserError, match=rf"http://127\.0\.0\.1:{port} cannot be used") as error:
        servers.enter_context(mlflow_server(folder, database, port))
        with runs.stage_run("one", shipped, makes=["made.txt"]) as run:
            servers.close()
            Path("made.txt").write_text("kept")
    assert "\n" not in str(error.value)
    assert Path("made.txt").read_text() == "kept"
    with mlflow_server(folder, database, port):
        assert store.connect()[0].get_run(run.id).info.run_name == "one"


class OtherServer(BaseHTTPRequestHandler):
    """A web server that is not an MLflow server."""

    status = 200

    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(self.status)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<html>\n<h1>Welcome</h1>\n" + b"<p>nothing\n" * 1000 + b"</html>")

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("status", [200, 403, 404])
def test_error_names_an_address_that_is_not_an_mlflow_server(tmp_path, shipped, monkeypatch, status):
    enter_root(tmp_path, monkeypatch)
    monkeypatch.setattr(OtherServer, "status", status)
    with ThreadingHTTPServer(("127.0.0.1", 0), OtherServer) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        try:
            address = f"http://127.0.0.1:{web.server_port}"
            monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
            for attempt in (lambda: runs.stage_run("one", shipped).__enter__(), lambda: registry.champion()):
                with pytest.raises(UserError, match=f"{address} cannot be used .*MLFLOW_TRACKING_URI") as error:
                    attempt()
                assert "\n" not in str(error.value) and len(str(error.value)) < 600
        finally:
            web.shutdown()


@pytest.mark.parametrize("address", ["localhost:5000", "htp://localhost:5000"])
def test_error_names_an_address_without_a_known_scheme(tmp_path, shipped, monkeypatch, address):
    enter_root(tmp_path, monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(UserError, match=f"{address} cannot be used .*MLFLOW_TRACKING_URI") as error:
        runs.stage_run("one", shipped).__enter__()
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir() if "lock" not in path.name] == ["dvc.yaml"]
