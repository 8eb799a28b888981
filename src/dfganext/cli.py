"""The command `dfganext`: classify image files and folders as real or fake.

Exit codes: 0, every image was classified; 1, some images could not be read; 2, wrong usage or no model; 130, interrupted.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text
from typer.exceptions import TyperException

import dfganext
from dfganext import runtime
from dfganext.data.discovery import BATCH_BYTES, BATCH_FILES, NOT_DATA, find_images, printable, read, shortened
from dfganext.demo import PORT, serve
from dfganext.errors import UserError, one_line
from dfganext.inference.rows import Row, changes, csv_writer, row_of
from dfganext.runtime import batches_by_bytes, map_ordered

if TYPE_CHECKING:  # importing torch takes seconds: --help and a mistyped path must not wait for it
    from pandas import DataFrame

    from dfganext.inference.detector import Detector, Prepared


class Format(StrEnum):
    """Of exported models."""

    SAFETENSORS = "safetensors"
    ONNX = "onnx"


DECODERS = 4
"""Threads that decode images, at most: each may hold an image of the largest size that is read."""

STEM_BYTES = 200
"""Maximum length of a heat map's name without number and suffix; file systems allow 255 bytes with them."""

STYLES = {"fake": "bold red", "real": "green", "unsure": "yellow", None: "yellow"}
"""Colours of rows on a terminal, by decision."""

EXIT_CODES = """[bold]Exit codes[/]
  0  every image was classified
  1  some images could not be read: their rows say why, under error
  2  wrong usage, or no model"""

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,  # a bug keeps Python's traceback
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. An error is printed to stderr as one sentence."""
    runtime.prepare()
    if hasattr(sys.stdout, "reconfigure"):  # a file name may have characters that the terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = app(arguments, prog_name="dfganext", standalone_mode=False)
        sys.stdout.flush()
        return code or 0
    except TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "dfganext"
        return _fail(f"{error.format_message().rstrip('.')} (see `{command} --help`).")
    except UserError as error:
        return _fail(str(error))
    except BrokenPipeError:  # the program that reads our output has stopped, as `head` does
        _discard_stdout()
        return 1
    except OSError as error:
        if error.filename:  # not stdout: a bug
            raise
        _discard_stdout()
        return _fail(f"Cannot write to stdout ({one_line(error)}).")


def run() -> NoReturn:
    """The console script."""
    runtime.leave(main())


def _decoders() -> int:
    return min(runtime.cores(), DECODERS)


def _fail(message: str) -> int:
    print(f"dfganext: {printable(message)}", file=sys.stderr)
    return 2


Model = Annotated[
    str | None,
    typer.Option(
        metavar="URI",
        show_default="the champion",
        help="models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID/PATH or a local folder.",
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        metavar="T",
        min=0,
        max=1,
        show_default="the model's own, chosen on the validation split",
        help="Label an image fake where p_fake is above T, from 0 to 1.",
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"dfganext {dfganext.__version__}")
        raise typer.Exit


@app.callback(
    epilog=f"""[bold]Examples[/]
  dfganext predict photo.jpg
  dfganext predict folder/ --csv rows.csv --heatmaps maps/
  dfganext evaluate labelled/
  dfganext score folder/ rows/ --workers 8
  dfganext demo

{EXIT_CODES}"""
)
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Tell GAN-generated face images from photographs."""


@app.command(
    short_help="Classify image files and folders.",
    epilog=f"""[bold]Examples[/]
  dfganext predict photo.jpg
  dfganext predict folder/ other.png --json > rows.json
  dfganext predict folder/ --csv rows.csv --heatmaps maps/
  dfganext predict photo.jpg --stability
  dfganext predict folder/ --model artifacts/models/convnext --threshold 0.4

{EXIT_CODES}""",
)
def predict(
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help="Image files, or folders to search for images.")],
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Also write the rows, with the threshold, to FILE.")
    ] = None,
    json_rows: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    heatmaps: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write one PNG per image to DIR: where the model finds evidence for fake."),
    ] = None,
    stability: Annotated[
        bool,
        typer.Option(
            "--stability",
            help="Also decide on copies of each image, saved as JPEG 75 and 50 and at half size; takes 4 times as long.",
        ),
    ] = False,
    model: Model = None,
    threshold: Threshold = None,
) -> int:
    """Classify image files and folders. Prints one row per image, unreadable ones included, in path order: path, label
    (real or fake), p_fake (the probability of fake), decision (real, fake or unsure), and a note: why the decision is unsure, or
    why an image could not be read."""
    files = find_images(paths)
    with ExitStack() as stack:
        targets = heatmap_files(files, heatmaps) if heatmaps else {}
        if csv_file:
            _refuse_overwrite([csv_file], files, "--csv", "file")
        detector, _ = _load(model, threshold, stack)
        writers = [stack.enter_context(_csv_rows(csv_file, stability))] if csv_file else []
        console = Console(force_terminal=sys.stdout.isatty(), soft_wrap=True, highlight=False)
        writers.append(stack.enter_context(_json_rows()) if json_rows else _table_rows(console, files))
        rows = predict_files(detector, files, targets, stability)
        progress = stack.enter_context(_progress(console, json_rows))
        unreadable = 0
        for row in progress.track(rows, total=len(files), description="predict"):
            unreadable += row["error"] is not None
            for write in writers:
                write(row)
    return 1 if unreadable else 0


@app.command(
    short_help="Measure the detector on labelled folders.",
    epilog=f"""[bold]Examples[/]
  dfganext evaluate folder/             with images in folder/real and folder/fake
  dfganext evaluate photos/real other/ --json > metrics.json

{EXIT_CODES}""",
)
def evaluate(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH", help="Folders with images below folders named real or fake.")
    ],
    json_metrics: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    model: Model = None,
    threshold: Threshold = None,
) -> int:
    """Measure the detector on labelled images, with 95 % confidence intervals: accuracy, the share of fakes that are found, the
    share of real images called fake, ROC AUC and calibration error. Near duplicates of its training images are left out."""
    with ExitStack() as stack:
        detector, trained_on = _load(model, threshold, stack)
        from dfganext.data.split import NEAR_DUPLICATE_BITS
        from dfganext.evaluation import external
        from dfganext.inference import labelled

        found = labelled.predict(detector, paths, workers=_decoders())
    metrics = external.evaluate_set(found.images, detector.threshold, trained_on, NEAR_DUPLICATE_BITS)
    refused = [row for row in found.rejects.to_dict("records") if row["reason"] != NOT_DATA]
    if json_metrics:
        print(json.dumps({**metrics, "threshold": detector.threshold, "refused": refused}, indent=2))
    else:
        _print_metrics(metrics, detector.threshold)
        for row in refused:
            print(f"dfganext: {row['source']} is left out: {row['detail']}", file=sys.stderr)
    return 1 if refused else 0


@app.command(
    short_help="Write a model to a folder that runs elsewhere.",
    epilog="""[bold]Examples[/]
  dfganext export champion/
  dfganext predict photo.jpg --model champion/
  dfganext export second/ --model models:/df-ganext/2 --format onnx
  python second/predict.py photo.jpg

[bold]Exit codes[/]
  0  the folder is complete
  2  wrong usage, no model, or one that cannot be exported: nothing is written""",
)
def export(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that is new or empty.")],
    file_format: Annotated[
        Format,
        typer.Option("--format", help="safetensors: for this command. onnx: for ONNX Runtime, without PyTorch."),
    ] = Format.SAFETENSORS,
    model: Model = None,
) -> int:
    """Write a model to a folder that runs elsewhere: weights, config, operating point, model card and the list of its training
    images; as ONNX, a model from pixels to p_fake with a script that decodes images and applies it."""
    with ExitStack() as stack:
        from dfganext.inference import export as exports
        from dfganext.tracking import registry

        detector = stack.enter_context(registry.resolve(model))
        write = exports.to_onnx if file_format is Format.ONNX else exports.to_safetensors
        write(detector, directory, registry.files_beside(detector))
    how = f"python {directory / exports.SCRIPT_FILE} photo.jpg"
    if file_format is Format.SAFETENSORS:
        how = f"dfganext predict photo.jpg --model {directory}"
    print(f"{printable(str(directory))} is written: {printable(how)}")
    return 0


@app.command(
    short_help="Classify very many images with Ray and write Parquet files.",
    epilog=f"""[bold]Examples[/]
  dfganext score folder/ rows/
  dfganext score 'folder/*.jpg' more/ rows/ --workers 8
  dfganext score s3://BUCKET/FOLDER s3://BUCKET/ROWS
  RAY_ADDRESS=HOST:PORT dfganext score /shared/folder /shared/rows

[bold]Columns[/]
  path, label, p_fake, threshold, decision, reason, error, retry, size, modified, model_version

{EXIT_CODES}""",
)
def score(
    places: Annotated[
        list[str], typer.Argument(metavar="IN", help="Folders, files, globs, or one address: s3://BUCKET/FOLDER.")
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="The folder, or address, of the rows.")],
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=1, show_default="one per core", help="Number of processes.")
    ] = None,
    model: Model = None,
    threshold: Threshold = None,
) -> int:
    """Classify very many images with Ray and write the rows to Parquet files. Run again, it continues where it stopped: it
    classifies images that are new or changed, and tries again those that could not be read for a reason that may have passed.
    RAY_ADDRESS names a Ray cluster; without it, this machine is used."""
    if not all(map(importlib.util.find_spec, ("ray", "pyarrow"))):
        raise UserError("Scoring runs on Ray, which is not installed: pip install 'df-ganext[scale]'.")
    from dfganext import scoring

    done = scoring.score(places, out, model, workers, threshold=threshold)
    print(
        f"{done.scored:,} of {done.total:,} images classified now ({done.rescored:,} of them again), {done.kept:,} before; "
        f"{done.unreadable:,} could not be read (see column error). Rows: {printable(done.out)}"
    )
    return 1 if done.unreadable else 0


@app.command(
    short_help="Decide on images in a browser, on this machine.",
    epilog="""[bold]Examples[/]
  dfganext demo
  dfganext demo --model models:/df-ganext/2 --port 8000

[bold]Exit codes[/]
  0  the demo was ended
  2  wrong usage, no model, or a port that is in use""",
)
def demo(
    model: Model = None,
    port: Annotated[int, typer.Option(metavar="N", min=1, max=65535, help="Port of 127.0.0.1.")] = PORT,
) -> int:
    """Serve a page at http://127.0.0.1:7860 on which images are dropped, pasted or chosen: decision, probability, heat map and
    stability of each, and a CSV file. Only this machine can open it. Ctrl+C ends it."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError("The demo runs on Gradio, which is not installed: pip install 'df-ganext[demo]'.")
    print("Loading the model …", flush=True)
    serve(model, port, on_ready=lambda url: print(f"The demo is at {url} (Ctrl+C ends it).", flush=True))
    return 0


def predict_files(
    detector: Detector, files: Iterable[Path], heatmaps: dict[Path, Path], stability: bool = False
) -> Iterator[Row]:
    """Yield one row per file, in order, and write the heat maps.

    Args:
        heatmaps: the PNG to write for each file; empty for none.
        stability: also decide on copies of each image.
    """

    def prepared(path: Path) -> tuple[Path, Prepared]:
        data = read(path)
        return path, detector.prepare(data if isinstance(data, bytes) else data.reason, stability)

    # threads prepare the next batch while the network computes
    images = map_ordered(prepared, files, _decoders(), limit=BATCH_FILES)
    for batch in batches_by_bytes(images, _bytes_of, BATCH_FILES, BATCH_BYTES):
        predictions = detector.predict_prepared([one for _, one in batch], explain=bool(heatmaps))
        for (path, _), found in zip(batch, predictions, strict=True):
            row = row_of(str(path), found)
            if found.heatmap is not None:
                with _writing(heatmaps[path], "--heatmaps", "folder"):
                    heatmaps[path].write_bytes(found.heatmap)
                row["heatmap"] = printable(str(heatmaps[path]))
            yield row


def heatmap_files(files: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Create `folder` and name the heat map of each file in it: the file's own name, with a number where that is taken.

    Raises:
        UserError: the folder cannot be created, or a heat map would overwrite one of the files.
    """
    with _writing(folder, "--heatmaps", "folder"):
        folder.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    names = {}
    for path in files:
        stem = shortened(path.stem, STEM_BYTES)
        name, number = f"{stem}.png", 1
        while name.casefold() in taken:  # some file systems ignore case
            number += 1
            name = f"{stem}-{number}.png"
        taken.add(name.casefold())
        names[path] = folder / name
    _refuse_overwrite(names.values(), files, "--heatmaps", "folder")
    return names


@contextmanager
def _csv_rows(path: Path, stability: bool) -> Iterator[Callable[[Row], object]]:
    """A function that writes a row to a CSV file; each row is on disk at once."""
    with _writing(path, "--csv", "file"):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("w", newline="", encoding="utf-8", buffering=1)
    try:
        with _writing(path, "--csv", "file"):
            write_row = csv_writer(stream, stability)

        def write(row: Row) -> None:
            with _writing(path, "--csv", "file"):
                write_row(row)

        yield write
    finally:
        with suppress(OSError):  # reported by write
            stream.close()


@contextmanager
def _json_rows() -> Iterator[Callable[[Row], object]]:
    """A function that prints a row of a JSON list."""
    before = "[\n"

    def write(row: Row) -> None:
        nonlocal before
        print(f"{before}  {json.dumps(row)}", end="")
        before = ",\n"

    yield write
    print("\n]")


def _table_rows(console: Console, files: Sequence[Path]) -> Callable[[Row], object]:
    """Print a header; returns a function that prints a row. Own columns: rich's Table needs all rows before the first."""
    width = max(len(printable(str(path))) for path in files)
    console.print(Text(f"{'path':<{width}}  label  p_fake  decision  note", style="bold"))

    def write(row: Row) -> None:
        p_fake = "-" if row["p_fake"] is None else f"{row['p_fake']:.4f}"
        notes = [row["error"] or row["reason"], _stability(row)]
        note = "; ".join(filter(None, notes))
        line = f"{row['path']:<{width}}  {row['label'] or '-':<5}  {p_fake:>6}  {row['decision'] or '-':<8}  {note}"
        text = Text(line.rstrip())
        text.stylize(STYLES[row["decision"]], start=width)
        console.print(text)

    return write


def _stability(row: Row) -> str:
    """Whether copies of an image get the same decision; empty where that was not asked."""
    if "stability" not in row:
        return ""
    return f"changes: {changes(row)}" if changes(row) else "the same decision for all copies"


def _progress(out: Console, json_rows: bool) -> Progress:
    """A progress bar below the table, or on stderr if stdout is not a terminal; none beside JSON on a terminal."""
    console = out if out.is_terminal else Console(stderr=True, force_terminal=sys.stderr.isatty())
    disable = not console.is_terminal or (out.is_terminal and json_rows)
    return Progress(console=console, disable=disable, redirect_stdout=False, transient=True)


def _load(uri: str | None, threshold: float | None, stack: ExitStack) -> tuple[Detector, DataFrame | None]:
    """A detector, and the list of its training images if it has one."""
    from dfganext.inference.detector import Detector
    from dfganext.inference.operating_point import NOT_CALIBRATED
    from dfganext.report import card
    from dfganext.report.text import SAMPLE_WARNING
    from dfganext.tracking import registry

    folder = stack.enter_context(registry.resolve(uri))
    detector = Detector.load(folder, threshold=threshold)
    if not detector.calibrated:
        print(f"dfganext: {NOT_CALIBRATED}", file=sys.stderr)
    described = card.known(registry.card(folder))
    if described is not None and described.sample:
        print(f"dfganext: {SAMPLE_WARNING}", file=sys.stderr)
    return detector, registry.trained_on(folder)


def _print_metrics(found: dict[str, Any], threshold: float) -> None:
    """The metrics of a labelled set, as a table."""
    from dfganext.evaluation import external

    decisions = found["decisions"]
    rows = [(title, found[name], found["intervals"].get(name)) for name, title in external.TITLES.items()]
    rows += [(title, decisions[name], decisions["intervals"][name]) for name, title in external.DECISION_TITLES.items()]
    table = Table(box=None, pad_edge=False)
    for column in ("", "value", "95 % interval"):
        table.add_column(column)
    for title, value, span in rows:
        known = value is not None
        table.add_row(
            title, f"{value:.4f}" if known else "-", f"{span[0]:.4f} … {span[1]:.4f}" if span and known else ""
        )
    console = Console(force_terminal=sys.stdout.isatty(), highlight=False)
    console.print(f"{found['real']} real and {found['fake']} fake images; fake where p_fake > {threshold:.4g}")
    if found["left_out"] is None:
        console.print("The model has no list of its training images: images it was trained on may be among these.")
    elif found["left_out"]:
        console.print(f"{external.left_out(found['left_out'])}.")
    console.print(table)


def _bytes_of(content: tuple[Path, Prepared]) -> int:
    pixels = content[1].pixels
    return 0 if pixels is None else pixels.nbytes


@contextmanager
def _writing(path: Path, option: str, kind: str) -> Iterator[None]:
    """UserError that names the option where `path` cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{option}: {path} cannot be written ({error.strerror}); name another {kind}.") from None


def _refuse_overwrite(targets: Iterable[Path], files: Iterable[Path], option: str, kind: str) -> None:
    """UserError where a target is one of the images."""
    images = {path.resolve() for path in files}
    for target in targets:
        if target.resolve() in images:
            raise UserError(f"{option}: {target} is one of the images and would be overwritten; name another {kind}.")


def _discard_stdout() -> None:
    """Send stdout to /dev/null, or the interpreter's last flush would fail again."""
    with suppress(OSError, ValueError):  # stdout is not a file of the operating system
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
