import io
import threading

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
    return rows.Row(path, label, None if error else p_fake, 0.5, error, retry, size, modified, True)


def folder_with(place, *files):
    folder = stores.folder_at(str(place))
    for number, file in enumerate(files):
        data = file if isinstance(file, bytes) else rows.to_parquet(file, "v")
        folder.write(f"part-{number}.parquet", data)
    return folder


def as_before(told):
    """A file as the version wrote it that knew nothing of sizes and times."""
    table = parquet.read_table(io.BytesIO(rows.to_parquet(told, "v"))).select(OLD_COLUMNS)
    stream = io.BytesIO()
    parquet.write_table(table, stream)
    return stream.getvalue()


def test_digests_keep_zeros_at_their_end(monkeypatch):
    digests = np.array([b"\0" * 16, b"a" + b"\0" * 15, b"a" * 15 + b"\0", b"a" * 16, b"\xff" * 16], "S16")
    monkeypatch.setattr(rows, "digests_of", lambda paths: np.array([digests[int(path)] for path in paths], "S16"))
    zeros, false = np.zeros(3, np.int64), np.zeros(3, bool)
    told = rows.Scored.of(["part"], [(digests[[0, 2, 4]], zeros, zeros, np.array([True, False, False]), false)])
    state = told.among([Found(str(index), 0, 0) for index in range(5)])
    assert state.known.tolist() == state.done.tolist() == [True, False, True, False, True]
    assert np.sum(state.unread) == 1


def test_a_row_holds_for_the_content_that_it_was_made_of(tmp_path):
    told = [
        row("good"),
        row("broken", error="not an image"),
        row("passing", error="cannot be read", retry=True),
        row("no time", modified=None),
        row("ages ago", modified=-(10**30)),
    ]
    scored = rows.Scored.read(folder_with(tmp_path, told[:2], told[2:]))
    same = scored.among([Found("good", 1, 10), Found("broken", 1, 10), Found("passing", 1, 10), Found("new", 1, 10)])
    assert same.known.tolist() == [True, True, True, False]
    assert same.done.tolist() == [True, True, False, False]
    assert same.unread.tolist() == [False, True, False, False]
    assert [scored.names[file] for file in same.file[:3]] == ["part-0.parquet", "part-0.parquet", "part-1.parquet"]
    changed = scored.among([Found("good", 2, 10), Found("good", 1, 11), Found("broken", 1, 9), Found("good", 1)])
    assert changed.known.all() and not changed.done.any() and not changed.unread.any()
    assert scored.among([Found("no time", 1), Found("ages ago", 1, -(10**29))]).done.all()


def test_rows_of_before_there_were_versions_do_not_hold(tmp_path):
    scored = rows.Scored.read(folder_with(tmp_path, as_before([row("a"), row("b", error="not an image")])))
    state = scored.among([Found("a", 1, 10), Found("b", 1, 10), Found("c", 1, 10)])
    assert state.known.tolist() == state.unversioned.tolist() == [True, True, False]
    assert not state.done.any() and not state.unread.any()


@pytest.mark.parametrize("form", [lambda told: rows.to_parquet(told, "old"), as_before])
def test_a_file_is_replaced_but_for_the_rows_that_stay(form):
    before = form([row("c", 0.1), row("a", 0.2), row("b", 0.3), row("d", 0.4)])
    without = [rows.digests_of(["d"])[0]]
    data = rows.to_parquet([row("b", 0.9, size=7, modified=1), row("e", error="x", retry=True)], "new", before, without)
    table = pd.read_parquet(io.BytesIO(data))
    assert tuple(table.columns) == rows.COLUMNS
    assert table.path.tolist() == ["a", "b", "c", "e"]
    assert table.p_fake.fillna(-1).tolist() == [0.2, 0.9, 0.1, -1]
    assert table["size"][1] == 7
    assert table.modified[1] == pd.Timestamp(1, tz="UTC")
    assert table.retry.tolist()[3] is True
    assert parquet.read_schema(io.BytesIO(data)) == parquet.read_schema(io.BytesIO(rows.to_parquet([row("a")], "v")))


def test_no_table_is_not_replaced():
    with pytest.raises(pa.ArrowException):
        rows.to_parquet([row("a")], "v", b"damaged")


def model_of(name, threshold=0.5):
    return Model({}, name, name * 64, threshold, 1.0, True)


ADDRESSES = ["{root}/out", "local://{root}/out"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_of_several_models_that_claim_a_folder_at_once_one_gets_it(tmp_path, address):
    for attempt in range(3):
        place, told = address.format(root=tmp_path / str(attempt)), {}
        start = threading.Barrier(6)

        def claim(index, place=place, told=told, start=start):
            model, folder = model_of("abcabc"[index]), stores.folder_at(place)
            start.wait()
            try:
                told[index] = rows.claim(folder, model).sha256
            except UserError as error:
                told[index] = str(error)

        threads = [threading.Thread(target=claim, args=(index,)) for index in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        won = {text for text in told.values() if len(text) == 64}
        assert len(won) == 1
        assert sum(text in won for text in told.values()) == 2  # both commands with that model
        assert all(text in won or "verdicts of another model" in text for text in told.values()), told
        assert stores.folder_at(place).names() == {rows.RECORD}


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_folder_that_was_looked_at_before_another_model_claimed_it_is_refused(tmp_path, address):
    """The later one began while there was no record yet."""
    folder = stores.folder_at(address.format(root=tmp_path))
    later = rows.agreed(folder, model_of("a"))
    assert rows.claim(folder, model_of("b", 0.3)).version == "b"
    with pytest.raises(UserError, match=r"holds verdicts of another model, b with threshold 0\.3"):
        rows.claim(folder, later)
    assert rows.claim(folder, model_of("b", 0.3)).version == "b"


def test_what_a_writer_that_was_killed_claimed_is_forgotten(tmp_path, monkeypatch):
    folder = stores.folder_at(f"local://{tmp_path}/out")
    folder.write(f"{stores.CLAIM}{'0' * 64}-killed", b"claimed")
    with pytest.raises(UserError, match="is about to be used by another run"):
        rows.claim(folder, model_of("a"))
    monkeypatch.setattr(stores, "ABANDONED_SECONDS", 0.0)
    assert rows.claim(folder, model_of("a")).version == "a"
