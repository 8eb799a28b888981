"""The two classes. "fake" is the positive class everywhere."""

REAL, FAKE = 0, 1
ALL = (REAL, FAKE)
NAMES = ("real", "fake")


def index_of(name: str) -> int:
    """0 for "real", 1 for "fake"; ValueError for anything else."""
    return NAMES.index(name)
