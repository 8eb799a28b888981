"""README.md, docs/, CONTRIBUTING.md, CHANGELOG.md: links, commands, settings and references to code are correct.

`python -m tests.test_docs` writes the line numbers of references to code again, after a change of the code.
"""

from __future__ import annotations

import ast
import difflib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
CURRENT = [path for path in DOCUMENTS if path.name != "CHANGELOG.md"]
"""Documents of the present state: the changelog also names commands and settings of the past."""

LINK = re.compile(r"\[(?P<label>[^\]]*)\]\((?P<target>[^)\s]+)\)")
REFERENCE = re.compile(r"\[`(?P<name>[A-Za-z_][\w.]*)`\]\((?P<file>[^)\s#]+\.py)(?:#L(?P<line>\d+))?\)")
PROGRAMS = [
    "curl",
    "dfganext",
    "docker",
    "dvc",
    "export",
    "git",
    "hf",
    "make",
    "mlflow",
    "mypy",
    "pip",
    "pipx",
    "pre-commit",
    "python",
    "ruff",
    "source",
    "sudo",
    "torchrun",
]
"""Code in a sentence that begins with one of these is a command."""

RUN_BY = {
    "test_fresh_clone_reproduces": ["dvc repro", "python -m stages.check", "python -m stages.NAME"],
    "test_experiments_of_every_kind_share_one_store": [
        "dvc exp run",
        "dvc exp run -S loss=bce",
        "dvc exp run --temp",
        "dvc exp run --temp -S convnext.lr=1e-3",
        "dvc exp run --queue -S seed=1",
        "dvc exp run --queue -S seed=2",
        "dvc queue start",
    ],
    "test_a_clone_without_the_cache_makes_the_same_bytes": [
        "dvc repro --force",
        "dfganext predict",
        "dfganext predict photo.jpg",
    ],
    "test_training_in_two_processes_is_one_run_with_the_same_curves": ["dvc repro NAME", "dvc repro evaluate"],
    "test_another_weights_file_of_the_same_name_trains_again": ["dvc repro train_convnext"],
    "test_plots_are_shown": ["dvc plots show"],
    "test_the_table_of_experiments_has_settings_and_metrics": ["make experiments"],
    "test_own_images": ["dvc remove data.dvc", "dvc add data"],
    "test_images_take_the_place_of_the_sample_and_of_other_images": ["make data FROM=/path/to/images"],
    "test_the_sample_comes_back": ["git checkout data.dvc", "dvc repro data.dvc"],
    "test_table1_has_its_rows_once_and_the_page_shows_them": [
        "make table1",
        "make table1 SEEDS=5",
        "make report",
        "python -m benchmarks.tables results/mine-tables.csv",
    ],
    "test_one_row_per_test": ["python -m benchmarks.evidence results/mine.csv"],
    "test_missing_architectures_are_queued_and_run": ["make architectures", "make architectures SEEDS=3"],
    "test_clone_pulls_from_a_remote_and_runs_only_what_acts_outside_dvc": [
        "dvc remote add -d storage s3://bucket/df-ganext",
        "dvc push",
        "dvc pull",
    ],
    "test_an_experiment_whose_queue_is_killed_is_queued_again": [
        "dvc queue kill",
        "dvc queue kill NAME",
        "dvc queue remove NAME",
        "dvc queue status",
    ],
    "test_two_clones_share_files_and_runs": [
        "dvc exp push origin NAME",
        "dvc exp pull origin NAME",
        "dvc exp apply NAME",
        "export MLFLOW_TRACKING_URI=http://mlflow.example.org:5000 MLFLOW_TRACKING_USERNAME=… MLFLOW_TRACKING_PASSWORD=…",
    ],
    "test_a_profile_for_robust_training_turns_on_every_degradation": [
        "python -m dfganext.settings profiles/robust.yaml"
    ],
    "test_the_profile_from_scratch_has_a_teacher_and_no_weights": [
        "python -m dfganext.settings profiles/from-scratch.yaml",
        "python -m dfganext.settings profiles/from-scratch-2.yaml",
    ],
    "test_a_lock_file_that_was_cut_off_comes_back_from_git": ["git checkout dvc.lock"],
    "test_stability_names_the_copies_that_change_the_decision": ["dfganext predict photo.jpg --stability"],
    "test_evaluate_prints_a_table": ["dfganext evaluate PATH...", "dfganext evaluate labelled/"],
    "test_evaluate_leaves_out_near_duplicates_of_training_images": [
        "dfganext evaluate labelled/ --json --model models:/df-ganext/2"
    ],
    "test_the_table": ["dfganext predict PATH..."],
    "test_an_export_predicts_the_same": [
        "dfganext export DIR",
        "dfganext export champion/",
        "dfganext export shared-model",
        "dfganext predict photo.jpg --model shared-model",
        "dfganext predict photo.jpg --model champion/",
        "dfganext export onnx/ --format onnx",
        "python onnx/predict.py photo.jpg",
    ],
    "test_json_and_csv_have_one_row_per_image_in_path_order": [
        "dfganext predict folder/ --csv predictions.csv --heatmaps maps",
    ],
    "test_images_are_chosen_and_the_csv_is_that_of_predict": ["dfganext predict --csv"],
    "test_sigterm_ends_the_demo_and_removes_its_folder": [
        "make demo",
        "dfganext demo",
        "dfganext demo --model models:/df-ganext/2 --port 8000",
        "dfganext demo --model shared-model",
    ],
    "test_resolve_finds_detectors_wherever_they_are": ["dfganext predict folder/ --json --model models:/df-ganext/2"],
    "test_rows_are_what_predict_prints": ["dfganext score", "dfganext score IN OUT", "dfganext score photos/ rows/"],
    "test_places_stand_for_images": ["dfganext score 'photos/2026-*/**/*.jpg' rows/ --workers 8"],
    "test_images_and_rows_in_an_object_store": ["dfganext score s3://bucket/photos s3://bucket/rows"],
    "test_every_form_with_good_and_broken_images": [
        "mlflow artifacts download --artifact-uri models:/df-ganext@champion --dst-path version",
        "make serve",
        "mlflow models serve",
        "curl -s http://127.0.0.1:5001/invocations -H 'Content-Type: application/json' -d @- <<JSON",
    ],
    "test_a_champion_set_by_hand_is_compared_and_no_earlier_champion_returns": [
        'python -c \'import mlflow; mlflow.MlflowClient().set_registered_model_alias("df-ganext", "champion", 3)\'',
    ],
    "test_torchrun_of_two_machines": [
        "torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29400 -m stages.train_convnext",
    ],
    "test_a_new_drawing_equals_the_committed_sample": ["python -m dfganext.synthetic.samples"],
    "test_readme_quotes_the_files": ["python -m benchmarks.summary"],
    "test_a_decision_is_timed_per_image": ["python -m benchmarks.decisions"],
    "test_references_to_code_name_the_right_line": ["python -m tests.test_docs"],
    "test_the_paper_profile_changes_these_settings_and_no_others": ["python -m dfganext.settings profiles/paper.yaml"],
}
"""By test, the commands of the documents that it runs: with other values in place of names, or the commands of a make target's recipe."""

NOT_RUN = {
    "installs packages, for which it needs a network": [
        "make setup",
        "make repro",
        "make PYTHON=/path/to/python3.12 repro",
        "make lock",
        "pip install",
        "pip install atheris",
        "pip install .",
        "pip install '.[demo]'",
        "pip install '.[scale]'",
        "pip install '.[onnx]'",
        "pip install '.[openvino]'",
        "pip install '.[pipeline]'",
        "pip install '.[pipeline,server]'",
        "pipx install pre-commit",
        "pre-commit install",
    ],
    "runs these tests, or is run beside them by .ci/run": [
        "make check",
        "make lint",
        "make test",
        "make stress-short",
        'python -m pytest -m "not slow"',
        "ruff check",
        "ruff format --check",
        "mypy",
    ],
    "serves until it is stopped, and is MLflow's own": ["make ui", "mlflow ui --port 5002"],
    "needs an idle machine; tests/test_benchmarks.py runs the parts on small inputs, and tests/stress the short form": [
        "make bench",
        "make stress",
        "make stress-kill",
    ],
    "needs atheris; test_fuzzing_finds_nothing_in_some_seconds runs it where that is installed": [
        "python -m tests.hostile.fuzz decode --minutes 40",
        "python -m tests.hostile.fuzz extract --minutes 20",
    ],
    "names a place that only its reader knows": [
        "git clone <this repository> df-ganext && cd df-ganext",
    ],
    "a command of the shell, of git or of DVC that changes nothing here": [
        "source .venv/bin/activate",
        "git checkout params.yaml",
        "dvc exp show",
        "dvc metrics diff",
        "dvc plots diff",
        "dvc config cache.type hardlink,copy",
        "dvc exp run --force",
    ],
    "takes an hour and needs the paper's images; benchmarks.evidence recorded it": [
        "dvc exp run -S convnext.architecture=tf_efficientnet_lite0 -S convnext.weights=FILE -S convnext.match=order "
        "-S convnext.size=256 -S convnext.epochs=14 -S convnext.batch_size=32 -S convnext.lr=0.0015 "
        "-S convnext.precision=float32 -S subsample.validation=0.1",
    ],
    "needs ImageNet weights; tests/training/test_distillation.py and test_check_stage.py use a teacher's file": [
        "dvc exp run -S convnext.architecture=tf_efficientnet_lite0 -S convnext.weights=imagenet -S convnext.size=256",
        "mkdir -p models && cp -r artifacts/models/convnext models/teacher",
        "mkdir -p models/crops && cp -f artifacts/models/convnext/* models/crops/",
    ],
    "needs a container engine; tests/inference/test_server.py runs the Dockerfile's steps": [
        "docker build --tag df-ganext .",
        "docker run --rm --read-only --tmpfs /tmp --publish 127.0.0.1:5001:5001 df-ganext",
    ],
    "needs several machines": ["dvc commit train_convnext"],
    "signs in to a service": ["hf auth login"],
    "sets up a server for a team; tests/end_to_end/test_remote.py starts one on PostgreSQL with the same SQL, without sign-in": [
        'sudo -u postgres psql -c "CREATE USER mlflow PASSWORD \'secret\'" -c "CREATE DATABASE mlflow OWNER mlflow"',
        "cat > auth.ini <<END",
        "export MLFLOW_AUTH_CONFIG_PATH=$PWD/auth.ini MLFLOW_AUTH_ADMIN_PASSWORD=… MLFLOW_FLASK_SERVER_SECRET_KEY=…",
        "mlflow server --app-name basic-auth --backend-store-uri postgresql+psycopg2://mlflow:secret@localhost/mlflow "
        "--artifacts-destination /srv/mlflow --host 0.0.0.0 --allowed-hosts 'mlflow.example.org,mlflow.example.org:*'",
    ],
}
"""By reason, the commands that no test runs."""


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def fenced(text: str) -> Iterator[tuple[str, list[str]]]:
    """Language and lines of each fenced block; the language is "prose" for the text between them."""
    language, lines = "prose", []
    for line in text.splitlines():
        if fence := re.match(r"\s*```(\w*)", line):
            yield language, lines
            language, lines = ("none" if language == "prose" else "prose"), []
            language = fence[1] or language
        else:
            lines.append(line)
    yield language, lines


def prose(path: Path) -> str:
    return "\n".join("\n".join(lines) for language, lines in fenced(path.read_text("utf-8")) if language == "prose")


def inline_code(path: Path) -> list[str]:
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(path))]


def shell_commands(lines: list[str]) -> list[str]:
    """Commands of a shell block: without comments, here-documents as their first line, continued lines as one."""
    commands: list[str] = []
    end = ""
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if end:
            end = "" if line.strip() == end else end
            continue
        command = " ".join(re.sub(r"(^|\s)#\s.*$", "", line).split())
        if command:
            commands.append(command)
        if here := re.search(r"<<(\w+)", command):
            end = here[1]
    return commands


def commands_of(path: Path) -> list[str]:
    """Commands in shell blocks, and in sentences, where they begin with a program's name."""
    blocks = [lines for language, lines in fenced(path.read_text("utf-8")) if language == "sh"]
    found = [command for lines in blocks for command in shell_commands(lines)]
    return found + [
        code for code in inline_code(path) if code.split()[0] in PROGRAMS and (" " in code or code == "mypy")
    ]


def anchors(path: Path) -> set[str]:
    return {slug(line.lstrip("#").strip()) for line in prose(path).splitlines() if line.startswith("#")}


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def defined_at(file: Path, name: str) -> int | None:
    """The line on which a file defines a function, class, method or constant; None if it defines none of this name."""
    scope: list[ast.stmt] = ast.parse(file.read_text("utf-8")).body
    line = None
    for part in name.split("."):
        found = next((node for node in scope if part in _names(node)), None)
        if found is None:
            return None
        line, scope = found.lineno, getattr(found, "body", [])
    return line


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def rewrite_line_numbers() -> int:
    """Write the line numbers of all references to code; returns how many references name what is not defined."""
    wrong = 0
    for path in DOCUMENTS:
        text = path.read_text("utf-8")

        def correct(found: re.Match[str], path: Path = path) -> str:
            nonlocal wrong
            file = path.parent / found["file"]
            line = defined_at(file, found["name"]) if file.is_file() else None
            if line is None:
                wrong += 1
                print(f"{named(path)}: {found['file']} does not define {found['name']}", file=sys.stderr)
                return found[0]
            return f"[`{found['name']}`]({found['file']}#L{line})"

        changed = REFERENCE.sub(correct, text)
        if changed != text:
            path.write_text(changed, "utf-8")
            print(f"{named(path)} written")
    return wrong


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


def test_every_page_is_linked_from_the_readme_and_from_the_list_of_pages():
    pages = {path.resolve() for path in DOCUMENTS}
    for index in (ROOT / "README.md", ROOT / "docs" / "README.md"):
        linked = {(index.parent / found["target"].split("#")[0]).resolve() for found in LINK.finditer(prose(index))}
        assert {named(path) for path in pages - linked - {index}} <= {"README.md"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_links_resolve(path):
    broken = []
    for found in LINK.finditer(prose(path)):
        target, _, anchor = found["target"].partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (path.parent / target).resolve() if target else path
        if not file.exists():
            broken.append(f"{found['target']}: there is no such file")
        elif file.suffix == ".md" and anchor and anchor not in anchors(file):
            broken.append(f"{found['target']}: {named(file)} has the anchors {', '.join(sorted(anchors(file)))}")
    assert broken == []


def test_anchors_are_those_of_github():
    assert slug("The paper's data and settings") == "the-papers-data-and-settings"
    assert slug("Walk 2: `loss: bce` changes training") == "walk-2-loss-bce-changes-training"
    assert slug("Licence") == "licence"


def test_shell_blocks_are_cut_into_commands():
    block = "a b  # why\n# nothing\nc \\\n  --d 'x#y'\ncat > f <<END\n[e]\nEND\ng".splitlines()
    assert shell_commands(block) == ["a b", "c --d 'x#y'", "cat > f <<END", "g"]
    text = "one\n```sh\ntwo\n```\nthree\n  ```\n  four\n  ```\n"
    assert list(fenced(text)) == [
        ("prose", ["one"]),
        ("sh", ["two"]),
        ("prose", ["three"]),
        ("none", ["  four"]),
        ("prose", []),
    ]


@pytest.mark.parametrize("path", CURRENT, ids=named)
def test_every_command_is_run_by_a_test_or_listed_as_not_run(path):
    listed = {command for commands in (*RUN_BY.values(), *NOT_RUN.values()) for command in commands}
    unknown = [command for command in commands_of(path) if command not in listed]
    assert unknown == [], "add them to RUN_BY, with the test that runs them, or to NOT_RUN, with the reason"


def test_no_command_is_listed_that_no_document_has():
    present = {command for path in CURRENT for command in commands_of(path)}
    listed = [command for commands in (*RUN_BY.values(), *NOT_RUN.values()) for command in commands]
    assert [command for command in listed if command not in present] == []
    assert len(listed) == len(set(listed))


def defined_tests() -> set[str]:
    files = (ROOT / "tests").rglob("test_*.py")
    return {name for file in files for name in re.findall(r"^def (test_\w+)\(", file.read_text("utf-8"), re.MULTILINE)}


def test_every_test_that_is_named_exists():
    mentioned = {code for path in CURRENT for code in inline_code(path) if re.fullmatch(r"test_\w+", code)}
    known = defined_tests()
    missing = {name: difflib.get_close_matches(name, known, 2) for name in (set(RUN_BY) | mentioned) - known}
    assert missing == {}, "tests that were renamed or removed, each with those of a similar name"


def test_every_make_target_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    commands = {command for path in CURRENT for command in commands_of(path) if command.startswith("make ")}
    used = {word for command in commands for word in command.split()[1:] if "=" not in word}
    assert used - targets == set()
    listed = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert {line.split()[1] for line in listed} == targets - {"help"}


@pytest.mark.parametrize("path", CURRENT, ids=named)
def test_settings_exist(path):
    """Code such as `convnext.lr`, `loss: bce` and `-S seed=1`; what else has a dot is a file or belongs to a module."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))
    package = ROOT / "src" / "dfganext"
    modules = {file.stem for file in package.iterdir()} | {"dfganext", "mlflow", "stages"}
    unknown = []
    codes = [code.removeprefix("-S ") for code in inline_code(path)]
    codes += [key for command in commands_of(path) for key in re.findall(r"(?<=-S )\S+", command)]
    for code in codes:
        found = re.match(r"(?P<key>[a-z_]\w*(?:\.[a-z_]\w*)*)(?P<value>: .*|=.*)?$", code)
        if found is None or not ("." in found["key"] or found["value"]) or found["key"] in {"cache", "cmd"}:
            continue  # cache and cmd are keys of dvc.yaml
        key = found["key"].split(".")
        is_file = not found["value"] and re.search(
            r"\.(csv|db|dvc|html|ini|json|lock|md|parquet|py|safetensors|toml|yaml|zip)$", code
        )
        if is_file or (key[0] not in params and key[0] in modules):
            continue
        value: object = params
        for part in key:
            value = value.get(part, KeyError) if isinstance(value, dict) else KeyError
        if value is KeyError:
            unknown.append(code)
    assert unknown == [], "params.yaml has no setting of this name"


@pytest.mark.parametrize("path", CURRENT, ids=named)
def test_source_files_that_are_named_exist(path):
    folders = ("src", "stages", "tests", "benchmarks")
    files = [named(file) for folder in folders for file in (ROOT / folder).rglob("*.py")]
    mentioned = {code for code in inline_code(path) if re.fullmatch(r"[a-z_/0-9]+\.py", code)}
    assert {code for code in mentioned if not any(f"/{file}".endswith(f"/{code}") for file in files)} == set()


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_references_to_code_name_the_right_line(path):
    wrong = []
    for found in REFERENCE.finditer(path.read_text("utf-8")):
        file = path.parent / found["file"]
        line = defined_at(file, found["name"]) if file.is_file() else None
        if line is None:
            wrong.append(f"{found['file']} does not define {found['name']}")
        elif str(line) != found["line"]:
            wrong.append(f"{found['name']} is on line {line} of {found['file']}, not {found['line']}")
    assert wrong == [], "`python -m tests.test_docs` corrects line numbers; correct names by hand"


def test_definitions_are_found(tmp_path):
    file = tmp_path / "module.py"
    file.write_text("A = 1\nB: int = 2\n\n@decorated\nclass C:\n    def d(self): ...\n\nasync def e(): ...\n")
    found = {name: defined_at(file, name) for name in ("A", "B", "C", "C.d", "e", "d", "C.x")}
    assert found == {"A": 1, "B": 2, "C": 5, "C.d": 6, "e": 8, "d": None, "C.x": None}


def test_ci_calls_make_and_the_hooks_come_from_the_lock():
    ci = (ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8")
    job = yaml.safe_load(ci)["jobs"]["check"]
    assert [step["run"] for step in job["steps"] if "run" in step] == ["make ${{ matrix.target }}"]
    assert job["strategy"]["matrix"]["target"] == re.findall(
        r"^make ([\w-]+)$", (ROOT / ".ci" / "run").read_text(), re.M
    )
    (hooks,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    assert hooks["repo"] == "local"
    for hook in hooks["hooks"]:
        program = hook["entry"].split()[0]
        assert hook["language"] == "system" and program.startswith(".venv/bin/")
        assert f"\n{program.removeprefix('.venv/bin/')}==" in (ROOT / "requirements.lock").read_text("utf-8")


if __name__ == "__main__":
    sys.exit(1 if rewrite_line_numbers() else 0)
