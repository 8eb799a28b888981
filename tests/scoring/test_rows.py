import io
import json
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from dfganext.data.discovery import Found
from dfganext.errors import UserError
from dfganext.scoring import rows, stores
from dfganext.scoring.model import Model

OLD_COLUMNS = ["path", "label", "p_fake", "error", "model_version"]


def row(path, p_fake=0.25, size=1, modified=10, error=None, retry=False):
    label = None if error else "real"
    return rows.Row(
        path, label, None if error else p_fake, 0.5, None if error else label, None, error, retry, size, modified, True
    )


def folder_with(place, *files):
    folder = stores.Folder.at(str(place))
    for number, file in enumerate(files):
        data = file if isinstance(file, bytes) else rows.to_parquet(file, "v")
        folder.write(f"part-{number}.parquet", data)
    return folder


def unversioned(table_rows):
    """A file as an earlier version wrote it, without sizes and times."""
    table = parquet.read_table(io.BytesIO(rows.to_parquet(table_rows, "v"))).select(OLD_COLUMNS)
    stream = io.BytesIO()
    parquet.write_table(table, stream)
    return stream.getvalue()


def test_digests_that_end_in_zeros_differ(monkeypatch):
    digests = np.array([b"\0" * 16, b"a" + b"\0" * 15, b"a" * 15 + b"\0", b"a" * 16, b"\xff" * 16], "S16")
    monkeypatch.setattr(rows, "digests_of", lambda paths: np.array([digests[int(path)] for path in paths], "S16"))
    zeros, false = np.zeros(3, np.int64), np.zeros(3, bool)
    keys = rows.make_keys(["0", "2", "4"], zeros, zeros, np.array([True, False, False]), false)
    state = rows.ScoredRows.of(["part"], [keys]).state_of([Found(str(index), 0, 0) for index in range(5)])
    assert state.known.tolist() == state.valid.tolist() == [True, False, True, False, True]
    assert np.sum(state.unreadable) == 1


def test_a_row_is_valid_for_one_size_and_time(tmp_path):
    written = [
        row("good"),
        row("broken", error="not an image"),
        row("passing", error="cannot be read", retry=True),
        row("no time", modified=None),
        row("ages ago", modified=-(10**30)),
    ]
    scored = rows.ScoredRows.read(folder_with(tmp_path, written[:2], written[2:]))
    same = scored.state_of([Found("good", 1, 10), Found("broken", 1, 10), Found("passing", 1, 10), Found("new", 1, 10)])
    assert same.known.tolist() == [True, True, True, False]
    assert same.valid.tolist() == [True, True, False, False]
    assert same.unreadable.tolist() == [False, True, False, False]
    assert [scored.names[file] for file in same.file[:3]] == ["part-0.parquet", "part-0.parquet", "part-1.parquet"]
    changed = scored.state_of([Found("good", 2, 10), Found("good", 1, 11), Found("broken", 1, 9), Found("good", 1)])
    assert changed.known.all() and not changed.valid.any() and not changed.unreadable.any()
    assert scored.state_of([Found("no time", 1), Found("ages ago", 1, -(10**29))]).valid.all()


def test_unversioned_rows_are_not_valid(tmp_path):
    scored = rows.ScoredRows.read(folder_with(tmp_path, unversioned([row("a"), row("b", error="not an image")])))
    state = scored.state_of([Found("a", 1, 10), Found("b", 1, 10), Found("c", 1, 10)])
    assert state.known.tolist() == [True, True, False]
    assert not state.valid.any() and not state.unreadable.any()


@pytest.mark.parametrize("form", [lambda table_rows: rows.to_parquet(table_rows, "old"), unversioned])
def test_a_replaced_file_keeps_its_other_rows(form):
    before = form([row("c", 0.1), row("a", 0.2), row("b", 0.3)])
    data = rows.to_parquet([row("b", 0.9, size=7, modified=1), row("e", error="x", retry=True)], "new", before)
    table = pd.read_parquet(io.BytesIO(data))
    assert list(table.columns) == rows.SCHEMA.names
    assert table.path.tolist() == ["a", "b", "c", "e"]
    assert table.p_fake.fillna(-1).tolist() == [0.2, 0.9, 0.1, -1]
    assert table["size"][1] == 7
    assert table.modified[1] == pd.Timestamp(1, tz="UTC")
    assert table.retry.tolist()[3] is True
    assert parquet.read_schema(io.BytesIO(data)) == parquet.read_schema(io.BytesIO(rows.to_parquet([row("a")], "v")))


def test_a_damaged_file_is_not_replaced():
    with pytest.raises(pa.ArrowException):
        rows.to_parquet([row("a")], "v", b"damaged")


def model_of(name, threshold=0.5):
    return Model({}, name, name * 64, threshold, 1.0, True)


ADDRESSES = ["{root}/out", "local://{root}/out"]


@pytest.mark.slow
@pytest.mark.parametrize("address", ADDRESSES)
def test_one_of_several_models_gets_a_folder(tmp_path, address, monkeypatch):
    monkeypatch.setattr(stores, "SETTLE_SECONDS", 1.5)  # more than a busy machine keeps a thread waiting
    if address.startswith("local:"):  # as in an object store
        monkeypatch.setattr(stores, "_link", lambda *_: False)
    for attempt in range(2):
        place, answers = address.format(root=tmp_path / str(attempt)), {}
        start = threading.Barrier(6)

        def claim(index, place=place, answers=answers, start=start):
            model, folder = model_of("abcabc"[index]), stores.Folder.at(place)
            start.wait()
            try:
                answers[index] = rows.claim(folder, model).sha256
            except UserError as error:
                answers[index] = str(error)

        threads = [threading.Thread(target=claim, args=(index,)) for index in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        won = {text for text in answers.values() if len(text) == 64}
        assert len(won) == 1, answers
        assert sum(text in won for text in answers.values()) == 2, answers  # both commands with that model
        assert all(text in won or "rows of another model" in text for text in answers.values()), answers
        assert stores.Folder.at(place).names() == {rows.RECORD}


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_folder_that_another_model_claimed_is_refused(tmp_path, address):
    folder = stores.Folder.at(address.format(root=tmp_path))
    assert rows.claim(folder, model_of("b", 0.3)).version == "b"
    with pytest.raises(UserError, match=r"holds rows of another model, b with threshold 0\.3"):
        rows.claim(folder, model_of("a"))
    assert rows.claim(folder, model_of("b", 0.3)).version == "b"


@pytest.mark.parametrize("hard_links", [True, False])
@pytest.mark.parametrize("address", ADDRESSES)
def test_a_run_waits_for_other_writers_only_while_there_are_no_rows(tmp_path, monkeypatch, address, hard_links):
    """Where a file can be made at once for all writers, the one that makes it does not wait."""
    if not hard_links:
        monkeypatch.setattr(Path, "hardlink_to", fails_with(OSError(1, "Operation not permitted")))
    folder, waits = stores.Folder.at(address.format(root=tmp_path)), []
    monkeypatch.setattr(stores.time, "sleep", waits.append)
    rows.claim(folder, model_of("a"))
    assert len(waits) == (0 if hard_links else 1)
    rows.claim(folder, model_of("a"))  # another writer may be about to replace a new record
    assert waits == [stores.SETTLE_SECONDS] * (1 if hard_links else 2)
    folder.write("part-0.parquet", b"rows")
    waits.clear()
    rows.claim(folder, model_of("a"))
    assert not waits
    assert sorted(folder.names()) == [rows.RECORD, "part-0.parquet"] and len(list((tmp_path / "out").iterdir())) == 2


def fails_with(error):
    def fails(*_):
        raise error

    return fails


def test_a_writer_that_replaces_a_new_record_stops_all_other_models(tmp_path, monkeypatch):
    """Object stores have no conditional write: a writer that saw an empty folder may write after another one has."""
    monkeypatch.setattr(stores, "_link", lambda *_: False)
    folder = stores.Folder.at(f"local://{tmp_path}/out")
    late = json.dumps({"model": {"sha256": "b" * 64, "version": "b", "threshold": 0.3}}).encode()
    for already in (False, True):
        if already:
            folder.write(rows.RECORD, late.replace(b"bb", b"aa").replace(b'"b"', b'"a"'))
        monkeypatch.setattr(stores.time, "sleep", lambda _: folder.write(rows.RECORD, late))
        with pytest.raises(UserError, match=r"holds rows of another model, b with threshold 0\.3"):
            rows.claim(folder, model_of("a"))
        (tmp_path / "out" / rows.RECORD).unlink()
