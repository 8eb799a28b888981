"""Downloads one file over HTTP, continues a partial download, and checks the sha256."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.exceptions import MaxRetryError
from urllib3.util import Retry

from dfganext.errors import UserError

_CHUNK = 1 << 18
_BUSY = (408, 425, 429, 500, 502, 503, 504)

RETRIES = Retry(
    5, status_forcelist=_BUSY, backoff_factor=1.0, backoff_max=60.0, retry_after_max=60, raise_on_status=False
)
"""Up to 6 tries, with pauses of 2, 4, ... seconds, or those that the server asks for, at most a minute each."""


def fetch(url: str, target: Path, sha256: str, retries: Retry = RETRIES, timeout: float = 30.0) -> Path:
    """Download a file; if it exists with the right sha256, nothing is sent.

    A partial download is kept as NAME.part and continued, in this call or a later one. If a continued file has another sha256
    than expected, it is downloaded once more from the start. `target` appears only complete and checked.

    Args:
        url: http:// or https://.
        target: the file to write; its folder is made too.
        sha256: 64 hexadecimal digits.
        retries: of a connection, and of transfers in a row that break without a new byte.
        timeout: seconds without a byte after which a connection counts as broken.

    Returns:
        `target`.

    Raises:
        UserError: a key of the download section is wrong, the server refuses, the connection keeps failing, or the sha256 differs.
    """
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise UserError(f"download.url must be an http:// or https:// address, not {redact(url)!r}.")
    if not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise UserError(f"download.sha256 must be 64 hexadecimal digits, as `sha256sum FILE` prints, not {sha256!r}.")
    sha256 = sha256.lower()
    if target.is_file() and _digest(target) == sha256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    continued = _download(url, part, retries, timeout)
    if continued and _digest(part) != sha256:
        part.unlink()
        _download(url, part, retries, timeout)
    got = _digest(part)
    if got != sha256:
        part.unlink()
        raise UserError(
            f"download.sha256 expects {sha256}, but {redact(url)} holds a file with {got}: "
            "correct the key, or find out why the file differs."
        )
    part.replace(target)
    return target


def redact(url: str) -> str:
    """A URL for messages, without its password and its query, which may hold a signature."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _download(url: str, part: Path, retries: Retry, timeout: float) -> bool:
    """Download to `part`, after the bytes that it holds; returns whether it was continued anywhere."""
    continued = _size(part) > 0
    budget = retries
    with requests.Session() as session, tqdm(unit="B", unit_scale=True, desc="download", disable=None) as bar:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=retries))
        while True:
            before = _size(part)
            if _transfer(session, url, part, timeout, bar):
                return continued
            continued = True
            if _size(part) > before:
                budget = retries
                continue
            try:
                budget = budget.increment()
            except MaxRetryError as error:
                raise _failed(url, part, "the connection breaks off") from error
            budget.sleep()


def _transfer(session: requests.Session, url: str, part: Path, timeout: float, bar: tqdm) -> bool:
    """Send one request, and append its answer to `part`, or replace `part`; returns whether the answer came to its end."""
    size = _size(part)
    headers = {"Accept-Encoding": "identity"}  # a range of compressed bytes could not be appended
    if size:
        headers["Range"] = f"bytes={size}-"
    try:
        response = session.get(url, headers=headers, stream=True, timeout=timeout)
    except requests.RequestException as error:  # its text may hold the query of the URL
        raise _failed(url, part, type(error).__name__) from error
    with response:
        if size and response.status_code == 416:  # `part` is as long as the file, or longer: the sha256 tells
            return True
        _check_status(response, url, part)
        appends = response.status_code == 206
        length = response.headers.get("Content-Length", "")
        bar.reset(total=size * appends + int(length) if length.isdigit() else None)
        bar.update(size * appends)
        with part.open("ab" if appends else "wb") as sink:
            try:
                for chunk in response.iter_content(_CHUNK):
                    sink.write(chunk)
                    bar.update(len(chunk))
            except requests.RequestException:
                return False
    return True


def _check_status(response: requests.Response, url: str, part: Path) -> None:
    status = f"{response.status_code} {response.reason}".strip()
    if response.status_code in _BUSY:
        raise _failed(url, part, f"the server says {status}")
    if response.status_code not in (200, 206):
        raise UserError(f"{redact(url)} cannot be downloaded, the server says {status}: check download.url.")


def _failed(url: str, part: Path, reason: str) -> UserError:
    return UserError(
        f"{redact(url)} could not be downloaded ({reason}): check the connection and run again, {_size(part):,} bytes are kept."
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
