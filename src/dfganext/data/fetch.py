"""One file over HTTP, resumed where it broke off and checked against its sha256."""

from __future__ import annotations

import hashlib
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import requests
from tqdm import tqdm

from dfganext.errors import UserError, one_line

_CHUNK = 1 << 20
_WORTH_ANOTHER_TRY = frozenset({408, 425, 429, 500, 502, 503, 504})


class _TransientError(Exception):
    """A failure that may pass: the connection broke or the server is busy. `wait` is what the server asks for, in seconds."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


def fetch(
    url: str, target: Path, sha256: str, attempts: int = 6, first_pause: float = 1.0, timeout: float = 30.0
) -> Path:
    """Download a file; a file that is there already and has the right sha256 is left as it is, without a connection.

    What has come is kept beside the target as NAME.part and continued from, now or in a later call, if the server still has
    the same version of the file (ETag or Last-Modified) and can send a part of it. `target` appears only complete and checked.

    Args:
        url: http:// or https://.
        target: the file to make; its folder is made too.
        sha256: 64 hexadecimal digits.
        attempts: how many times in a row to try without at least a megabyte of progress.
        first_pause: seconds before the second try; doubled for each further one, up to a minute.
        timeout: seconds without a byte after which a connection counts as broken.

    Returns:
        `target`.

    Raises:
        UserError: a key of the download section is wrong, the server refuses, the connection keeps failing, or the sha256 differs.
    """
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise UserError(f"download.url must be an http:// or https:// address, not {shown(url)!r}.")
    if not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise UserError(f"download.sha256 must be 64 hexadecimal digits, as `sha256sum FILE` prints, not {sha256!r}.")
    if target.is_file() and _digest(target) == sha256.lower():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _Part(target.with_name(target.name + ".part"), url)
    _transfer(url, part, attempts, first_pause, timeout)
    got = _digest(part.path)
    if got != sha256.lower():
        part.discard()
        raise UserError(
            f"download.sha256 expects {sha256.lower()}, but {shown(url)} holds a file with {got}: "
            "correct the key, or find out why the file differs."
        )
    part.path.replace(target)
    part.discard()
    return target


def shown(url: str) -> str:
    """An address for messages, without the password or signature that it may carry."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


@dataclass
class _Part:
    """The unfinished file and, in a second file, the version of the original that it is a part of."""

    path: Path
    url: str

    @property
    def _note(self) -> Path:
        return self.path.with_name(self.path.name + ".json")

    def version(self) -> str | None:
        """The validator to send with If-Range, or None where the part is not to be continued."""
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        known = isinstance(note, dict) and note.get("url") == self.url and self.size() > 0
        return note.get("version") if known else None

    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def restart(self, version: str | None) -> None:
        """Empty the part and note the version that is about to come; the note first, so that the two never disagree."""
        self.discard()
        if version:
            self._note.write_text(json.dumps({"url": self.url, "version": version}), encoding="utf-8")
        self.path.touch()

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)


def _transfer(url: str, part: _Part, attempts: int, first_pause: float, timeout: float) -> None:
    failures = 0
    with requests.Session() as session, tqdm(unit="B", unit_scale=True, desc="download", disable=None) as bar:
        while True:
            before = part.size()
            try:
                return _attempt(session, url, part, timeout, bar)
            except _TransientError as failure:
                failures = 1 if part.size() >= before + _CHUNK else failures + 1
                if failures >= attempts:
                    raise UserError(
                        f"{shown(url)} could not be downloaded in {attempts} tries ({failure}): check the connection and "
                        f"run again, {part.size():,} bytes are kept."
                    ) from failure
                time.sleep(max(min(first_pause * 2 ** (failures - 1), 60.0), min(failure.wait, 60.0)))


def _attempt(session: requests.Session, url: str, part: _Part, timeout: float, bar: tqdm) -> None:
    headers = {"Accept-Encoding": "identity"}  # a range of compressed bytes would be of no use
    version = part.version()
    if version:
        headers |= {"Range": f"bytes={part.size()}-", "If-Range": version}
    try:
        with session.get(url, headers=headers, stream=True, timeout=timeout) as response:
            if response.status_code == 416:
                return _beyond_the_end(response, part)
            _check_status(response, url)
            if response.status_code != 206:
                part.restart(_version(response))
            elif not re.match(rf"bytes {part.size()}-", response.headers.get("Content-Range", "")):
                part.discard()
                raise _TransientError("the server sent another part than the one asked for")
            length = response.headers.get("Content-Length", "")
            bar.total = part.size() + int(length) if length.isdigit() else None
            bar.n = part.size()
            bar.refresh()
            with part.path.open("ab") as sink:
                for chunk in response.iter_content(_CHUNK):
                    sink.write(chunk)
                    bar.update(len(chunk))
    except (requests.exceptions.InvalidURL, requests.exceptions.TooManyRedirects) as error:
        raise UserError(f"download.url, {shown(url)}, cannot be followed ({one_line(error)}): correct it.") from error
    except requests.RequestException as error:
        raise _TransientError(type(error).__name__) from error


def _check_status(response: requests.Response, url: str) -> None:
    status = f"{response.status_code} {response.reason}".strip()
    if response.status_code in _WORTH_ANOTHER_TRY:
        wait = response.headers.get("Retry-After", "")
        raise _TransientError(f"the server says {status}", float(wait) if wait.isdigit() else 0.0)
    if response.status_code not in (200, 206):
        raise UserError(f"{shown(url)} cannot be downloaded, the server says {status}: check download.url.")


def _beyond_the_end(response: requests.Response, part: _Part) -> None:
    if response.headers.get("Content-Range") == f"bytes */{part.size()}":
        return  # everything had come before the last connection broke
    part.discard()
    raise _TransientError("the file on the server has become shorter")


def _version(response: requests.Response) -> str | None:
    """A validator strong enough for If-Range, or None where this answer cannot be continued."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        return None
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
