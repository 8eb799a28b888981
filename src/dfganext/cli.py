"""The command `dfganext`: verdicts on image files and folders, and on very many of them.

Exit codes: 0, every image was judged; 1, some could not be read; 2, wrong usage or no model.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import dfganext
from dfganext import process
from dfganext.data.trees import printable
from dfganext.errors import UserError
from dfganext.inputs import BATCH_BYTES, BATCH_FILES, find_images, read
from dfganext.pipeline import INTERRUPTED

if TYPE_CHECKING:  # torch takes seconds to import; a mistyped path is reported before that
    from dfganext.detector import Detector

COLUMNS = ("path", "label", "p_fake", "threshold", "error")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    process.prepare()
    try:
        return options.run(options)
    except UserError as error:
        print(f"dfganext: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def predict(options: argparse.Namespace) -> int:
    """Judge every image of the paths; print, and write what was asked for."""
    files = find_images(options.paths)
    with ExitStack() as stack:
        writers: list[_Rows] = [stack.enter_context(_CsvRows(options.csv))] if options.csv else []
        heatmaps = heatmap_files(files, options.heatmaps) if options.heatmaps else {}
        detector = _load(options.model, stack)
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
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(
        f"{done.judged:,} of {done.total:,} images judged now, {done.before:,} before; {done.unread:,} could not be read (see "
        f"column error). Rows: {printable(done.where)}"
    )
    for first, last in done.lost:
        print(
            f"dfganext: No rows from {first} to {last}: {ATTEMPTS} workers died of them; free memory and start again.",
            file=sys.stderr,
        )
    return 1 if done.unread or done.lost else 0


def judge_files(detector: Detector, files: Iterable[Path], heatmaps: dict[Path, Path]) -> Iterator[dict[str, Any]]:
    """One row a file, in order: path, label, p_fake, threshold, error, and heatmap, the PNG written, where there is one.

    Args:
        heatmaps: where the heat map of each file goes; empty for none.
    """
    for batch in _batches(files):
        verdicts = detector.judge([data for _, data in batch], explain=bool(heatmaps))
        for (path, _), verdict in zip(batch, verdicts, strict=True):
            row: dict[str, Any] = {"path": printable(str(path)), "label": verdict.label, "p_fake": verdict.p_fake}
            row |= {"threshold": verdict.threshold, "error": verdict.error}
            if verdict.heatmap is not None:
                heatmaps[path].write_bytes(verdict.heatmap)
                row["heatmap"] = str(heatmaps[path])
            yield row


def heatmap_files(files: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """A name in `folder`, which is made, for the heat map of each file: its own, numbered where that is taken."""
    _make_folder(folder, "--heatmaps")
    taken: set[str] = set()
    names = {}
    for path in files:
        stem = path.stem[:100]
        name, number = f"{stem}.png", 1
        while name.casefold() in taken:  # some file systems ignore case
            number += 1
            name = f"{stem}-{number}.png"
        taken.add(name.casefold())
        names[path] = folder / name
    return names


class _Rows(Protocol):
    """Takes the rows one by one."""

    def write(self, row: dict[str, Any]) -> None: ...


class _CsvRows:
    """Rows to a CSV file as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> _CsvRows:
        _make_folder(self.path.parent, "--csv")
        try:
            self.stream: TextIO = self.path.open("w", newline="", encoding="utf-8")
        except OSError as error:
            raise UserError(f"--csv: {self.path} cannot be written ({error.strerror}); name another file.") from None
        self.rows = csv.DictWriter(self.stream, COLUMNS, extrasaction="ignore", lineterminator="\n")
        self.rows.writeheader()
        return self

    def write(self, row: dict[str, Any]) -> None:
        self.rows.writerow(row)

    def __exit__(self, *_: object) -> None:
        self.stream.close()


class _JsonRows:
    """Rows to stdout as one JSON list, as they come."""

    def __enter__(self) -> _JsonRows:
        self.before = "[\n"
        return self

    def write(self, row: dict[str, Any]) -> None:
        print(f"{self.before}  {json.dumps(row, ensure_ascii=False)}", end="")
        self.before = ",\n"

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            print("\n]")


class _TableRows:
    """Rows to stdout in columns, as they come."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.width = max(len(printable(str(path))) for path in files)

    def __enter__(self) -> _TableRows:
        print(f"{'path':<{self.width}}  label  p_fake  error")
        return self

    def write(self, row: dict[str, Any]) -> None:
        p_fake = "-" if row["p_fake"] is None else f"{row['p_fake']:.4f}"
        line = f"{row['path']:<{self.width}}  {row['label'] or '-':<5}  {p_fake:>6}  {row['error'] or ''}"
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
        description="Write Parquet files with a row an image: path, label, p_fake, error, model_version. Started again, it goes "
        "on where it stopped, and judges what has come since. RAY_ADDRESS names a Ray cluster to run on; default: this machine.",
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


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of processes: give 1 or more")
    return int(text)


def _load(uri: str | None, stack: ExitStack) -> Detector:
    from dfganext import registry
    from dfganext.detector import Detector

    return Detector.load(stack.enter_context(registry.resolve(uri or registry.CHAMPION_URI)))


def _batches(files: Iterable[Path]) -> Iterator[list[tuple[Path, bytes | str]]]:
    """Paths with their files' bytes, or with a text that says why they could not be read."""
    batch: list[tuple[Path, bytes | str]] = []
    held = 0
    for path in files:
        data = read(path)
        batch.append((path, data))
        held += len(data)
        if len(batch) == BATCH_FILES or held > BATCH_BYTES:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _make_folder(folder: Path, option: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option}: {folder} cannot be made a folder ({error.strerror}); name another.") from None


def _progress(rows: Iterator[dict[str, Any]], total: int) -> Iterator[dict[str, Any]]:
    """A bar on stderr, where that is a terminal and the rows themselves do not show how far it is."""
    from tqdm import tqdm

    return iter(tqdm(rows, total=total, unit="image", disable=not sys.stderr.isatty() or sys.stdout.isatty()))
