"""The process that makes a run or a version, as tags of it: so that others find what a killed process has left unfinished."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress

import psutil

OWNER = "process.owner"
PROCESS = "process"


def tags() -> dict[str, str]:
    """The tags of this process: its machine and user, and itself."""
    return {OWNER: owner(), PROCESS: name_of(psutil.Process())}


def owner() -> str:
    """This machine and this user."""
    return f"{socket.gethostname()} {os.getuid()}"


def name_of(process: psutil.Process) -> str:
    """Identifies a process of this machine, also after its process ID was used again: psutil hashes the start time too."""
    return f"{process.pid} {hash(process):x}"


def has_ended(tags: Mapping[str, str]) -> bool:
    """Whether the process of these tags was this user's on this machine and no longer exists; False of any other process."""
    if PROCESS not in tags or tags.get(OWNER) != owner():
        return False
    with suppress(psutil.NoSuchProcess):
        return name_of(psutil.Process(int(tags[PROCESS].split()[0]))) != tags[PROCESS]
    return True
