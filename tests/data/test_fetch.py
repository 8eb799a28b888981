"""Downloads that break, continue, change on the server and have the wrong sha256, against a server on this machine."""

import hashlib
import random

import pytest
from helpers import free_port
from urllib3.util import Retry

from dfganext.data.fetch import RETRIES, fetch
from dfganext.errors import UserError, redact

BODY = random.Random(0).randbytes(3_000_000)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def get(server, tmp_path):
    """Fetch what the server holds to tmp_path/file, without pauses between tries."""
    server.body = BODY

    def call(sha256: str = digest(BODY), tries: int = 3, path: str = "/a.zip"):
        retries = RETRIES.new(total=tries - 1, backoff_factor=0.0)
        return fetch(server.url + path, tmp_path / "file", sha256, retries, timeout=5.0)

    return call


@pytest.fixture
def partial(server, tmp_path):
    """Leave tmp_path/file.part with the bytes given, as if an earlier call had broken off."""

    def call(data: bytes = BODY[:1_200_000]):
        (tmp_path / "file.part").write_bytes(data)

    return call


def test_a_whole_file_is_downloaded_once(server, get, tmp_path):
    assert get() == tmp_path / "file"
    assert (tmp_path / "file").read_bytes() == BODY
    get(sha256=digest(BODY).upper())
    assert server.requests == [("/a.zip", None)]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_broken_connection_is_continued_where_it_broke(server, get):
    server.break_after = [1_200_000, 1_500_000]
    assert get().read_bytes() == BODY
    starts = [int((wanted or "bytes=0-")[6:-1]) for _, wanted in server.requests]
    assert len(starts) == 3
    assert 0 == starts[0] < starts[1] <= 1_200_000 < starts[2] <= 2_700_000


def test_a_later_call_continues_too(server, get, tmp_path):
    server.break_after = [1_200_000, 0]
    with pytest.raises(UserError, match=r"could not be downloaded \(.*breaks off\).* [\d,]{9} bytes are kept"):
        get(tries=1)
    assert not (tmp_path / "file").exists()
    kept = (tmp_path / "file.part").stat().st_size
    assert 1_000_000 < kept <= 1_200_000
    assert get().read_bytes() == BODY
    assert server.requests[2:] == [("/a.zip", f"bytes={kept}-")]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_sha256_decides_and_not_the_address_or_the_version(server, get, partial):
    partial()
    server.etag = '"v2"'
    assert get(path="/b.zip").read_bytes() == BODY
    assert server.requests == [("/b.zip", "bytes=1200000-")]


@pytest.mark.parametrize("earlier", [True, False])
def test_a_server_that_ignores_ranges_sends_the_whole_file(server, get, partial, earlier):
    server.ranges = False
    if earlier:
        partial()
    else:
        server.break_after = [1_200_000]
    assert get().read_bytes() == BODY
    assert len(server.requests) == (1 if earlier else 2)


def test_a_part_that_is_whole_already_is_only_checked(server, get, partial):
    partial(BODY)
    assert get().read_bytes() == BODY
    assert server.requests == [("/a.zip", "bytes=3000000-")]


def test_a_wrong_sha256_names_the_key_and_leaves_nothing(server, get, tmp_path):
    with pytest.raises(UserError, match=rf"download\.sha256 expects {'0' * 64}, but .* {digest(BODY)}"):
        get(sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", [BODY + b"more", bytes(1_048_576)])
def test_a_part_that_is_too_long_or_damaged_is_deleted_and_the_next_run_starts_again(server, get, partial, part):
    partial(part)
    with pytest.raises(UserError, match=r"download\.sha256 expects .* the next run downloads the whole file"):
        get()
    assert len(server.requests) == 1
    assert get().read_bytes() == BODY
    assert server.requests[1:] == [("/a.zip", None)]


def test_a_missing_file_is_requested_once(server, get):
    server.statuses = [404] * 9
    with pytest.raises(UserError, match=r"the server says 404 Not Found\): check download\.url"):
        get()
    assert len(server.requests) == 1


def test_a_busy_server_is_retried(server, get):
    server.statuses = [503, 503]
    assert get().read_bytes() == BODY


def test_tries_are_bounded(server, get, tmp_path):
    server.statuses = [503] * 9
    with pytest.raises(
        UserError, match=r"could not be downloaded \(the server says 503 .*check download\.url and the connection"
    ):
        get()
    assert len(server.requests) == 3
    server.statuses, server.break_after = [], [0] * 9
    with pytest.raises(UserError, match=r"could not be downloaded .* 0 bytes are kept"):
        get()
    assert len(server.requests) == 6


def test_retry_after_is_respected_up_to_a_minute(server, get, monkeypatch):
    pauses = []
    monkeypatch.setattr("time.sleep", pauses.append)
    for stated, pause in (("7", 7), ("100000", 60)):
        server.answers["/a.zip"] = (503, {"Retry-After": stated}, b"")
        with pytest.raises(UserError, match="503"):
            get()
        assert pauses == [pause, pause]
        pauses.clear()


def test_no_server_is_one_clear_sentence(tmp_path):
    url = f"http://127.0.0.1:{free_port()}/a.zip"
    with pytest.raises(
        UserError, match=r"could not be downloaded \(ConnectionError\): check download\.url and the connection"
    ):
        fetch(f"{url}?signature=secret", tmp_path / "file", "0" * 64, Retry(1))


def test_a_secret_in_the_address_is_in_no_message(server, tmp_path):
    server.statuses = [404]
    for url in (f"{server.url}/a.zip?signature=secret", f"http://127.0.0.1:{free_port()}/a.zip?signature=secret"):
        with pytest.raises(UserError) as caught:
            fetch(url, tmp_path / "file", "0" * 64, Retry(0))
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/a.zip", "a.zip", "http://"])
def test_only_web_addresses(tmp_path, url):
    with pytest.raises(UserError, match=r"download\.url"):
        fetch(url, tmp_path / "file", "0" * 64)


def test_the_sha256_must_be_one(tmp_path):
    with pytest.raises(UserError, match=r"download\.sha256 must be 64"):
        fetch("http://127.0.0.1/a.zip", tmp_path / "file", "abc")


def test_messages_hold_no_passwords_or_queries():
    assert redact("https://user:secret@host:81/a.zip?signature=secret") == "https://host:81/a.zip"
    assert redact("https://host:PORT/a@b.zip#secret") == "https://host:PORT/a@b.zip"
