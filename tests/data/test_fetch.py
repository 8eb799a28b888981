"""Downloads that break, resume, change under way and turn out wrong, against a server on this machine."""

import hashlib
import random

import pytest
from helpers import free_port

from dfganext.data.fetch import fetch, shown
from dfganext.errors import UserError

BODY = random.Random(0).randbytes(3_000_000)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def get(server, tmp_path):
    """Fetch what the server holds to tmp_path/file, with no time to wait between tries."""
    server.body = BODY

    def call(sha256: str = digest(BODY), attempts: int = 3, path: str = "/a.zip"):
        return fetch(server.url + path, tmp_path / "file", sha256, attempts=attempts, first_pause=0.0, timeout=5.0)

    return call


def test_a_whole_file_arrives_and_is_not_fetched_twice(server, get, tmp_path):
    assert get() == tmp_path / "file"
    assert (tmp_path / "file").read_bytes() == BODY
    get(sha256=digest(BODY).upper())
    assert server.requests == [("/a.zip", None)]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("validator", ["etag", "modified"])
def test_a_broken_connection_is_resumed_where_it_broke(server, get, tmp_path, validator):
    if validator == "modified":
        server.etag, server.modified = None, 1e9
    server.break_after = [1_200_000, 1_500_000]
    assert get().read_bytes() == BODY
    starts = [int((wanted or "bytes=0-")[6:-1]) for _, wanted in server.requests]
    assert len(starts) == 3
    assert 0 == starts[0] < starts[1] <= 1_200_000 < starts[2] <= 2_700_000


def test_a_later_call_resumes_too(server, get, tmp_path):
    server.break_after = [1_200_000]
    with pytest.raises(UserError, match=r"could not be downloaded in 1 tries .* bytes are kept"):
        get(attempts=1)
    assert not (tmp_path / "file").exists()
    assert (tmp_path / "file.part").stat().st_size > 1_000_000
    get()
    assert (tmp_path / "file").read_bytes() == BODY
    assert server.requests[1][1] == "bytes=1048576-"


def test_a_changed_file_starts_again(server, get, tmp_path):
    server.break_after = [1_200_000]
    with pytest.raises(UserError):
        get(attempts=1)
    server.body, server.etag = BODY[::-1], '"v2"'
    assert get(sha256=digest(BODY[::-1])).read_bytes() == BODY[::-1]
    assert server.requests[1][1] is not None


def test_another_address_does_not_continue_the_part_of_the_first(server, get):
    server.break_after = [1_200_000]
    with pytest.raises(UserError):
        get(attempts=1)
    get(path="/b.zip")
    assert server.requests[1] == ("/b.zip", None)


@pytest.mark.parametrize("fault", ["no ranges", "no validator", "weak validator"])
def test_a_server_that_cannot_resume_is_asked_for_everything_again(server, get, fault):
    server.ranges = fault != "no ranges"
    server.etag = {"no ranges": '"v1"', "no validator": None, "weak validator": 'W/"v1"'}[fault]
    server.break_after = [1_200_000]
    assert get().read_bytes() == BODY
    assert len(server.requests) == 2
    assert fault == "no ranges" or server.requests[1][1] is None


def test_a_part_that_is_whole_already_is_only_checked(server, get, tmp_path):
    server.break_after = [1_200_000]
    with pytest.raises(UserError):
        get(attempts=1)
    (tmp_path / "file.part").write_bytes(BODY)
    assert get().read_bytes() == BODY
    assert server.requests[1][1] == "bytes=3000000-"


def test_a_part_longer_than_the_file_is_dropped(server, get, tmp_path):
    server.break_after = [1_200_000]
    with pytest.raises(UserError):
        get(attempts=1)
    (tmp_path / "file.part").write_bytes(BODY + b"more")
    assert get().read_bytes() == BODY


def test_a_wrong_sha256_names_the_key_and_leaves_nothing(server, get, tmp_path):
    with pytest.raises(UserError, match=rf"download\.sha256 expects {'0' * 64}, but .* {digest(BODY)}"):
        get(sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_spoilt_part_does_not_spoil_the_next_call(server, get, tmp_path):
    server.break_after = [1_200_000]
    with pytest.raises(UserError):
        get(attempts=1)
    (tmp_path / "file.part").write_bytes(bytes(1_048_576))
    with pytest.raises(UserError, match=r"download\.sha256"):
        get()
    assert get().read_bytes() == BODY


def test_a_missing_file_is_not_asked_for_again(server, get):
    server.statuses = [404] * 9
    with pytest.raises(UserError, match=r"the server says 404 Not Found: check download\.url"):
        get()
    assert len(server.requests) == 1


def test_a_busy_server_is_asked_again(server, get):
    server.statuses = [503, 503]
    assert get().read_bytes() == BODY


def test_tries_are_bounded_but_progress_is_not_a_failure(server, get):
    server.statuses = [503] * 9
    with pytest.raises(UserError, match=r"in 3 tries .*503"):
        get()
    assert len(server.requests) == 3
    server.statuses, server.break_after = [], [1_100_000, 1_100_000]
    assert get(attempts=2).read_bytes() == BODY


def test_no_server_is_one_clear_sentence(tmp_path):
    url = f"http://127.0.0.1:{free_port()}/a.zip"
    with pytest.raises(UserError, match=r"could not be downloaded in 2 tries .*check the connection"):
        fetch(url, tmp_path / "file", "0" * 64, attempts=2, first_pause=0.0)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/a.zip", "a.zip", "http://"])
def test_only_web_addresses(tmp_path, url):
    with pytest.raises(UserError, match=r"download\.url"):
        fetch(url, tmp_path / "file", "0" * 64)


def test_the_sha256_must_be_one(tmp_path):
    with pytest.raises(UserError, match=r"download\.sha256 must be 64"):
        fetch("http://127.0.0.1/a.zip", tmp_path / "file", "abc")


def test_messages_do_not_give_secrets_away():
    assert shown("https://user:secret@host:81/a.zip?signature=secret") == "https://host:81/a.zip"
