"""The command `dfganext`: verdicts on image files and folders, and on very many of them.

Exit codes: 0, every image was judged; 1, some could not be read; 2, wrong usage or no model.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import dfganext
from dfganext import runtime as process
from dfganext.data.discovery import BATCH_BYTES, BATCH_FILES, Unread, find_images, printable, read, shortened
from dfganext.errors import UserError, one_line
from dfganext.pipeline import INTERRUPTED

if TYPE_CHECKING:  # torch takes seconds to import; a mistyped path is reported before that
    from dfganext.inference.detector import Detector

COLUMNS = ("path", "label", "p_fake", "threshold", "error")

STEM_BYTES = 200
"""Of a heat map's name; file systems allow 255 with number and ending."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    process.prepare()
    if hasattr(sys.stdout, "reconfigure"):  # file names may have letters that the terminal has not
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = options.run(options)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"dfganext: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe has seen enough
        _silence_stdout()
        return 1
    except OSError as error:
        if error.filename:  # not stdout's
            raise
        print(f"dfganext: What was to be printed cannot be written ({one_line(error)}).", file=sys.stderr)
        _silence_stdout()
        return 2


def predict(options: argparse.Namespace) -> int:
    """Judge every image of the paths; print, and write what was asked for."""
    files = find_images(options.paths)
    with ExitStack() as stack:
        heatmaps = heatmap_files(files, options.heatmaps) if options.heatmaps else {}
        if options.csv:
            _spare_images([options.csv], files, "--csv", "file")
        detector = _load(options.model, options.threshold, stack)
        writers: list[_Rows] = [stack.enter_context(_CsvRows(options.csv))] if options.csv else []
        writers.append(stack.enter_context(_JsonRows()) if options.json else stack.enter_context(_TableRows(files)))
        unread = 0
        for row in _progress(judge_files(detector, files, heatmaps), len(files)):
            unread += row["error"] is not None
            for writer in writers:
                writer.write(row)
    return 1 if unread else 0


def score(options: argparse.Namespace) -> int:
    """Judge very many images on Ray; the rows go to Parquet files."""
    from dfganext import scoring
    from dfganext.scoring.workers import ATTEMPTS

    done = scoring.score(
        options.places,
        options.out,
        options.model,
        options.workers,
        threshold=options.threshold,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(
        f"{done.judged:,} of {done.total:,} images judged now ({done.again:,} of them again), {done.before:,} before; "
        f"{done.unread:,} could not be read (see column error). Rows: {printable(done.where)}"
    )
    for first, last in done.lost:
        print(
            f"dfganext: No new rows from {first} to {last}: {ATTEMPTS} workers died of them; free memory and start again.",
            file=sys.stderr,
        )
    return 1 if done.unread or done.lost else 0


def judge_files(detector: Detector, files: Iterable[Path], heatmaps: dict[Path, Path]) -> Iterator[dict[str, Any]]:
    """One row a file, in order: path, label, p_fake, threshold, error, and heatmap, the PNG written, where there is one.

    Args:
        heatmaps: where the heat map of each file goes; empty for none.
    """
    for batch in _batches(files):
        encoded = [data if isinstance(data, bytes) else data.reason for _, data in batch]
        verdicts = detector.predict(encoded, explain=bool(heatmaps))
        for (path, _), verdict in zip(batch, verdicts, strict=True):
            row: dict[str, Any] = {"path": printable(str(path)), "label": verdict.label, "p_fake": verdict.p_fake}
            row |= {"threshold": verdict.threshold, "error": verdict.error}
            if verdict.heatmap is not None:
                _write_heatmap(heatmaps[path], verdict.heatmap)
                row["heatmap"] = printable(str(heatmaps[path]))
            yield row


def heatmap_files(files: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """A name in `folder`, which is made, for the heat map of each file: its own, numbered where that is taken.

    Raises:
        UserError: the folder cannot be made, or one of the files would be overwritten.
    """
    _make_folder(folder, "--heatmaps")
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
    _spare_images(names.values(), files, "--heatmaps", "folder")
    return names


class _Rows(Protocol):
    """Takes the rows one by one."""

    def write(self, row: dict[str, Any]) -> None: ...


class _CsvRows:
    """Rows to a CSV file, each there as soon as it is known."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> _CsvRows:
        _make_folder(self.path.parent, "--csv")
        try:
            self.stream: TextIO = self.path.open("w", newline="", encoding="utf-8", buffering=1)
        except OSError as error:
            raise self._failed(error) from None
        options: dict[str, Any] = {"extrasaction": "ignore", "lineterminator": "\n"}
        self.rows = csv.DictWriter(self.stream, COLUMNS, **options)
        self.quoted = csv.DictWriter(self.stream, COLUMNS, **options, quoting=csv.QUOTE_ALL)
        self._write(self.rows.writeheader)
        return self

    def write(self, row: dict[str, Any]) -> None:
        # before Python 3.13, a carriage return in a name is not taken for a reason to quote it
        rows = self.quoted if "\r" in row["path"] else self.rows
        self._write(lambda: rows.writerow(row))

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # told by _write, or of no row
            self.stream.close()

    def _write(self, call: Callable[[], object]) -> None:
        try:
            call()
        except OSError as error:
            raise self._failed(error) from None

    def _failed(self, error: OSError) -> UserError:
        return UserError(f"--csv: {self.path} cannot be written ({error.strerror}); name another file.")


class _JsonRows:
    """Rows to stdout as one JSON list, as they come."""

    def __enter__(self) -> _JsonRows:
        self.before = "[\n"
        return self

    def write(self, row: dict[str, Any]) -> None:
        ascii_only = (sys.stdout.encoding or "").replace("-", "").casefold() != "utf8"
        print(f"{self.before}  {json.dumps(row, ensure_ascii=ascii_only)}", end="")
        self.before = ",\n"

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            print("\n]")


class _TableRows:
    """Rows to stdout in columns, as they come."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.width = max(len(_in_a_line(printable(str(path)))) for path in files)

    def __enter__(self) -> _TableRows:
        print(f"{'path':<{self.width}}  label  p_fake  error")
        return self

    def write(self, row: dict[str, Any]) -> None:
        p_fake = "-" if row["p_fake"] is None else f"{row['p_fake']:.4f}"
        line = f"{_in_a_line(row['path']):<{self.width}}  {row['label'] or '-':<5}  {p_fake:>6}  {row['error'] or ''}"
        print(line.rstrip())

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dfganext", description="Tell GAN-generated faces from photographs.")
    parser.add_argument("--version", action="version", version=f"dfganext {dfganext.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "predict",
        help="judge image files and folders",
        description="Print a row an image: its path, real or fake, the probability of fake, and why it could not be judged.",
        epilog="Exit code 0: all judged; 1: some could not be read; 2: wrong usage or no model.",
    )
    command.add_argument("paths", nargs="+", metavar="PATH", help="an image file, or a folder searched for images")
    command.add_argument("--csv", type=Path, metavar="FILE", help="also write the rows, with the threshold, to FILE")
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    command.add_argument("--heatmaps", type=Path, metavar="DIR", help="write a PNG an image: where the evidence lies")
    _add_model(command)
    command.set_defaults(run=predict)
    command = commands.add_parser(
        "score",
        help="judge very many images, on Ray, to Parquet files",
        description="Write Parquet files with a row an image: path, label, p_fake, threshold, error, retry, size, modified, "
        "model_version. Started again, it goes on where it stopped, and judges what has come or changed since, and what could "
        "not be read for a reason that may have passed. RAY_ADDRESS names a Ray cluster to run on; default: this machine.",
        epilog="Exit code 0: all judged; 1: some could not be read; 2: wrong usage or no model.",
    )
    command.add_argument(
        "places", nargs="+", metavar="IN", help="folders, files, globs, or one address such as s3://BUCKET/FOLDER"
    )
    command.add_argument("out", metavar="OUT", help="a folder for the rows, or an address")
    command.add_argument("--workers", type=_count, metavar="N", help="processes that judge; default: one a core")
    _add_model(command)
    command.set_defaults(run=score)
    return parser


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model",
        metavar="URI",
        help="models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID/PATH or a local folder; default: the champion",
    )
    command.add_argument(
        "--threshold",
        type=_probability,
        metavar="T",
        help="an image is fake where p_fake is above T, 0 to 1; default: the model's own, chosen on validation images",
    )


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of processes: give 1 or more")
    return int(text)


def _probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no threshold: give a number from 0 to 1")
    return value


def _load(uri: str | None, threshold: float | None, stack: ExitStack) -> Detector:
    from dfganext.inference.detector import NOT_CALIBRATED, Detector
    from dfganext.tracking import registry

    detector = Detector.load(stack.enter_context(registry.resolve(uri)), threshold=threshold)
    if not detector.calibrated:
        print(f"dfganext: {NOT_CALIBRATED}", file=sys.stderr)
    return detector


def _batches(files: Iterable[Path]) -> Iterator[list[tuple[Path, bytes | Unread]]]:
    """Paths with their files' bytes, or with why they could not be read."""
    batch: list[tuple[Path, bytes | Unread]] = []
    held = 0
    for path in files:
        data = read(path)
        batch.append((path, data))
        held += len(data) if isinstance(data, bytes) else 0
        if len(batch) == BATCH_FILES or held > BATCH_BYTES:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _in_a_line(text: str) -> str:
    """Text without the characters that would end the line or steer the terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda found: ascii(found[0])[1:-1], text)


def _write_heatmap(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise UserError(f"--heatmaps: {path} cannot be written ({error.strerror}); name another folder.") from None


def _spare_images(targets: Iterable[Path], files: Iterable[Path], option: str, kind: str) -> None:
    """UserError where a target is one of the images."""
    images = {path.resolve() for path in files}
    for target in targets:
        if target.resolve() in images:
            raise UserError(f"{option}: {target} is one of the images and would be overwritten; name another {kind}.")


def _silence_stdout() -> None:
    """So that the interpreter's last attempt to write what is left does not fail as well."""
    with suppress(OSError, ValueError):  # not a file of the system's
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _make_folder(folder: Path, option: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option}: {folder} cannot be made a folder ({error.strerror}); name another.") from None


def _progress(rows: Iterator[dict[str, Any]], total: int) -> Iterator[dict[str, Any]]:
    """A bar on stderr, where that is a terminal and the rows themselves do not show how far it is."""
    from tqdm import tqdm

    return iter(tqdm(rows, total=total, unit="image", disable=not sys.stderr.isatty() or sys.stdout.isatty()))
