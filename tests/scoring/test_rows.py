import numpy as np

from dfganext.inputs import Found
from dfganext.scoring import rows


def test_digests_keep_zeros_at_their_end(monkeypatch):
    digests = np.array([b"\0" * 16, b"a" + b"\0" * 15, b"a" * 15 + b"\0", b"a" * 16, b"\xff" * 16], "S16")
    monkeypatch.setattr(rows, "digests_of", lambda paths: np.array([digests[int(path)] for path in paths], "S16"))
    told = rows.Scored(np.sort(digests[[0, 2, 4]]), np.array([True, False, False]))
    known, unread = told.among([Found(str(index), 0) for index in range(5)])
    assert known.tolist() == [True, False, True, False, True]
    assert unread == 1
