"""dvc.yaml declares everything that determines a stage's outputs: modules, settings, library versions."""

import ast
import dataclasses
import importlib
import re
import shutil
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import shrink

from dfganext import settings, versions
from dfganext.tracking import runs

ROOT = Path(__file__).resolve().parent.parent
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]

CANNOT_CHANGE_AN_OUTPUT = {
    "src/dfganext/__init__.py": "holds the package's version",
    "src/dfganext/errors.py": "the text of error messages",
    "src/dfganext/tracking/lineage.py": "tags MLflow runs and reads them, as runs.py does",
    "src/dfganext/paths.py": "dvc.yaml repeats every path, and test_paths.py compares the two",
    "src/dfganext/pipeline.py": "exit codes and signals",
    "src/dfganext/runtime.py": "threads and memory: the same results, faster (tests/test_runtime.py)",
    "src/dfganext/settings.py": "the settings that a stage reads are declared one by one",
    "src/dfganext/tracking/processes.py": "tags runs and versions with their process, as runs.py does",
    "src/dfganext/tracking/runs.py": "writes to MLflow, not to an output; promote and report, which read MLflow, declare it",
    "src/dfganext/tracking/store.py": "a client of MLflow; promote and report, which read MLflow, declare it",
    "src/dfganext/tracking/view.py": "how the MLflow UI shows the experiment",
    "src/dfganext/training/checkpoints.py": "resumed training gives the same bytes (tests/training/test_training.py)",
    "src/dfganext/versions.py": "each version that a stage depends on is declared",
    "stages/__init__.py": "puts src on the path",
}
READS_MLFLOW = ("promote", "report")


def excused(stage: str) -> set[str]:
    """Modules that a stage need not declare as dependencies."""
    edge = {
        f"src/dfganext/{name}.py"
        for name in ("tracking/lineage", "tracking/processes", "tracking/runs", "tracking/store", "versions")
    }
    return set(CANNOT_CHANGE_AN_OUTPUT) - (edge if stage in READS_MLFLOW else set())


@cache
def imported(file: Path) -> frozenset[str]:
    """Dotted names that a module imports, also inside functions, but not those for type checking only."""
    found: set[str] = set()

    class Imports(ast.NodeVisitor):
        def visit_If(self, node: ast.If) -> None:
            if "TYPE_CHECKING" not in ast.dump(node.test):
                self.generic_visit(node)

        def visit_Import(self, node: ast.Import) -> None:
            found.update(alias.name for alias in node.names)

        def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
            assert node.level == 0, f"{file}: relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)

    Imports().visit(parsed(file))
    return frozenset(found)


def parsed(file: Path) -> ast.Module:
    """An empty module for a file that is no code."""
    return ast.parse(file.read_text(encoding="utf-8") if file.suffix == ".py" else "")


def modules_of(name: str) -> set[Path]:
    """Files of this repository that run when `name` is imported: the module, and the __init__.py of its packages."""
    parts, found = name.split("."), set()
    base = ROOT / "src" if parts[0] == "dfganext" else ROOT
    for length in range(1, len(parts) + 1):
        place = base.joinpath(*parts[:length])
        found |= {file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()}
    return found


@cache
def closure(stage: str) -> frozenset[Path]:
    """Every file of this repository that a stage's script imports, directly or indirectly.

    promote also copies the modules that the served model imports into the version.
    """
    files = {ROOT / "stages" / "__init__.py", ROOT / "stages" / f"{stage}.py"}
    files |= {ROOT / "src/dfganext/inference/pyfunc.py"} if stage == "promote" else set()
    return reached_from(files)


def reached_from(files: set[Path]) -> frozenset[Path]:
    """These files, all files of this repository that they import, directly or indirectly, without empty files, and templates."""
    pending, seen = set(files), set()
    while pending:
        file = pending.pop()
        seen.add(file)
        pending |= named_beside(file) - seen
        names = {name for name in imported(file) if name.split(".")[0] in ("dfganext", "stages")}
        pending |= set().union(*map(modules_of, names)) - seen
    return frozenset(file for file in seen if file.read_text(encoding="utf-8").strip())


@cache
def named_beside(module: Path) -> frozenset[Path]:
    """Files in the folder of a module that it names in a string: templates and tables."""
    constants = (node.value for node in ast.walk(parsed(module)) if isinstance(node, ast.Constant))
    names = {value for value in constants if isinstance(value, str) and re.fullmatch(r"\w+\.\w+", value)}
    return frozenset(module.parent / name for name in names if (module.parent / name).is_file())


def declared(stage: str) -> list[str]:
    return [next(iter(one)) if isinstance(one, dict) else one for one in STAGES[stage]["deps"]]


@pytest.mark.parametrize("stage", STAGES)
def test_every_module_that_determines_an_output_is_a_dependency(stage):
    named = [ROOT / dependency for dependency in declared(stage)]
    missing = {
        file.relative_to(ROOT).as_posix()
        for file in closure(stage)
        if not any(file == one or one in file.parents for one in named)
    }
    assert sorted(missing - excused(stage)) == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_every_module_that_it_declares(stage):
    for dependency in declared(stage):
        place = ROOT / dependency
        if place.suffix and dependency.startswith("src/"):
            assert place in closure(stage), dependency
        elif dependency.startswith("src/"):
            assert any(place in file.parents for file in closure(stage)), dependency


def test_the_closure_sees_imports_inside_functions(tmp_path):
    module = tmp_path / "module.py"
    module.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import a\ndef f():\n    from b import c\n"
    )
    assert imported(module) == {"typing.TYPE_CHECKING", "b.c"}
    assert ROOT / "src/dfganext/explain/gradcam.py" in closure(
        "robustness"
    )  # detector.py imports it where a map is made


@pytest.mark.parametrize("stage", sorted(set(STAGES) - {"check"}))  # which writes the versions down
def test_every_library_that_determines_an_output_is_a_dependency_by_its_version(stage):
    """The libraries that the stage's modules import, and the libraries that these require."""
    used = libraries_of(frozenset(closure(stage) - {ROOT / name for name in excused(stage)}))
    params = [entry for entry in STAGES[stage].get("params", []) if isinstance(entry, dict)]
    named = [name for entry in params for name in entry.get("artifacts/versions.json", [])]
    assert sorted(named) == sorted(used)


def libraries_of(files: frozenset[Path]) -> set[str]:
    by_module = metadata.packages_distributions()
    roots = {name.split(".")[0] for file in files for name in imported(file)}
    pending = {normal(one) for root in roots for one in by_module.get(root, [])} & set(versions.LIBRARIES)
    found: set[str] = set()
    while pending:
        library = pending.pop()
        found.add(library)
        needs = {
            normal(re.match(r"[\w.-]+", line)[0]) for line in metadata.requires(library) or [] if "extra ==" not in line
        }
        needs |= {"opencv-python-headless"} if "opencv-python" in needs else set()
        pending |= needs & set(versions.LIBRARIES) - found
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


LAYERS = (
    {"cli"},
    {"demo", "scoring"},
    {"tracking"},
    {"report", "inference"},
    {"density", "training", "explain"},
    {"evaluation"},
    {"data", "models"},
    {"settings", "images", "pipeline", "synthetic"},
    {"paths", "files", "labels", "runtime", "versions"},
    {"errors"},
)
"""The package from top to bottom: a module or package imports itself and the layers below, never its own layer or one above."""
KNOWS_MLFLOW = {"cli", "demo", "scoring", "tracking"}
SERVED_MODEL = ROOT / "src" / "dfganext" / "inference" / "pyfunc.py"


def package_modules() -> dict[str, list[Path]]:
    """{name of a module or package directly in dfganext: its files}"""
    package = ROOT / "src" / "dfganext"
    found: dict[str, list[Path]] = {}
    for file in sorted(package.rglob("*.py")):
        if file != package / "__init__.py":
            found.setdefault(file.relative_to(package).parts[0].removesuffix(".py"), []).append(file)
    return found


def test_imports_only_go_down():
    files = package_modules()
    assert set(files) == set().union(*LAYERS), "a module is missing from LAYERS, or was removed"
    layer_of = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    for name, number in layer_of.items():
        for file in files[name]:
            targets = {one.split(".")[1] for one in imported(file) if one.startswith("dfganext.")}
            wrong = {one for one in targets & set(layer_of) - {name} if layer_of[one] <= number}
            assert not wrong, f"{file.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"


def test_the_core_imports_neither_mlflow_nor_dvc():
    """Nor does it import a module that does."""
    for name, files in package_modules().items():
        for file in set(files) - {SERVED_MODEL} if name not in KNOWS_MLFLOW else ():
            roots = {one.split(".")[0] for reached in reached_from({file}) for one in imported(reached)}
            assert not roots & {"mlflow", "dvc"}, file


class Recorder:
    """Records which settings are read, by the names that `dvc exp run -S` takes."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch
        self.read: set[str] = set()
        self.names: dict[int, str] = {}
        self.sections: list[object] = []  # kept alive, so that no other object gets the same id

    def watch(self, section: object, prefix: str = "") -> None:
        """Record reads of a section of the settings and of the sections in it."""
        if type(section) not in map(type, self.sections):
            self.patch.setattr(type(section), "__getattribute__", self._recording())
        self.sections.append(section)
        self.names[id(section)] = prefix
        for field in dataclasses.fields(section):
            value = object.__getattribute__(section, field.name)
            if dataclasses.is_dataclass(value):
                self.watch(value, f"{prefix}{field.name}.")

    def _recording(self) -> Any:
        def read(section: object, name: str) -> object:
            value = object.__getattribute__(section, name)
            known = id(section) in self.names and name in type(section).__dataclass_fields__
            if known and not dataclasses.is_dataclass(value):
                self.read.add(self.names[id(section)] + name)
            return value

        return read


@pytest.fixture(scope="module")
def settings_read(root, tmp_path_factory) -> dict[str, set[str]]:
    """The settings that each stage reads, from running all stages on a small part of the sample."""
    folder = tmp_path_factory.mktemp("workspace")
    for name in ("samples", "external"):
        shutil.copytree(root / name, folder / name)
    (folder / "data").symlink_to("samples")
    (folder / "data.dvc").write_text("outs: [{path: data}]")
    (folder / "params.yaml").write_text(shrink((root / "params.yaml").read_text(encoding="utf-8")))
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DVC_ROOT", str(folder))
        patch.setattr(runs, "_log_settings", lambda *_: None)  # it reads all settings
        shutil.copy(root / "dvc.yaml", folder)
        load = settings.load_settings
        for stage in STAGES:
            with patch.context() as during:
                recorder = Recorder(during)

                def watched(*arguments, recorder=recorder):
                    loaded = load(*arguments)
                    recorder.watch(loaded)
                    return loaded

                module = importlib.import_module(f"stages.{stage}")
                during.setattr(module, "load_settings", watched)
                module.main()
            found[stage] = recorder.read
    return found


@pytest.mark.slow
@pytest.mark.parametrize("stage", sorted(set(STAGES) - {"check"}))  # which depends on params.yaml as a whole
def test_the_settings_that_a_stage_reads_are_its_params(settings_read, stage):
    declared = [entry for entry in STAGES[stage].get("params", []) if isinstance(entry, str)]
    undeclared = {
        key
        for key in settings_read[stage]
        if not key.startswith("machine.") and not any(key == one or key.startswith(f"{one}.") for one in declared)
    }
    assert sorted(undeclared) == []
    unread = [
        one for one in declared if not any(key == one or key.startswith(f"{one}.") for key in settings_read[stage])
    ]
    assert unread == []
