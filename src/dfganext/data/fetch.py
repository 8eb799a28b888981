"""Downloads one file over HTTP, continues a partial download, and checks the sha256."""

from __future__ import annotations

import re
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.util import Retry

from dfganext.errors import UserError, redact
from dfganext.files import sha256_of

_BUSY = (408, 425, 429, 500, 502, 503, 504)

RETRIES = Retry(
    5, status_forcelist=_BUSY, backoff_factor=1.0, backoff_max=60.0, retry_after_max=60, raise_on_status=False
)
"""Up to 6 tries, with pauses of 2, 4, ... seconds, or those that the server asks for, at most a minute each."""


def fetch(url: str, target: Path, sha256: str, retries: Retry = RETRIES, timeout: float = 30.0) -> Path:
    """Download a file; if it exists with the right sha256, nothing is sent.

    A partial download is kept as NAME.part and continued, in this call or a later one.

    Args:
        url: http:// or https://.
        target: the file to write; its folder is made too.
        sha256: 64 hexadecimal digits.
        retries: of each connection; a transfer that breaks is continued as often.
        timeout: seconds without a byte after which a connection counts as broken.

    Raises:
        UserError: a key of the download section is wrong, the server refuses, the connection keeps failing, or the sha256 differs.
    """
    if not re.match("https?://[^/]", url):
        raise UserError(f"download.url must be an http:// or https:// address, not {redact(url)!r}.")
    if not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise UserError(f"download.sha256 must be 64 hexadecimal digits, as `sha256sum FILE` prints, not {sha256!r}.")
    sha256 = sha256.lower()
    if target.is_file() and sha256_of(target) == sha256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    _download(url, part, retries, timeout)
    got = sha256_of(part)
    if got != sha256:
        part.unlink()
        raise UserError(
            f"download.sha256 expects {sha256}, but {redact(url)} gave a file with {got}: correct the key, or find out why the "
            "file differs; the next run downloads the whole file."
        )
    part.replace(target)
    return target


def _download(url: str, part: Path, retries: Retry, timeout: float) -> None:
    """Download to `part`, after the bytes that it holds."""
    with requests.Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=retries))
        for _ in range(1 + int(retries.total or 0)):
            if _transfer(session, url, part, timeout):
                return
    raise _failed(url, part, "the connection breaks off")


def _transfer(session: requests.Session, url: str, part: Path, timeout: float) -> bool:
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
        if response.status_code not in (200, 206):
            raise _failed(url, part, f"the server says {response.status_code} {response.reason}")
        start = size if response.status_code == 206 else 0
        total = start + int(response.headers.get("Content-Length", 0)) or None
        bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc="download", disable=None)
        with bar, part.open("ab" if start else "wb") as sink:
            try:
                for chunk in response.iter_content(1 << 18):
                    sink.write(chunk)
                    bar.update(len(chunk))
            except requests.RequestException:
                return False
    return True


def _failed(url: str, part: Path, reason: str) -> UserError:
    return UserError(
        f"{redact(url)} could not be downloaded ({reason}): check download.url and the connection, and run again; "
        f"{_size(part):,} bytes are kept."
    )


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0
