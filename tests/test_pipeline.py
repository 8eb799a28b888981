import errno
import os
import signal

import pytest

from dfganext import pipeline
from dfganext.errors import UserError


@pytest.fixture(autouse=True)
def handler():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_stage_that_succeeds():
    calls = []
    assert pipeline.exit_code(lambda: calls.append(1)) == 0
    assert calls == [1]


def test_a_user_error_is_one_sentence(capsys):
    def main():
        raise UserError("params.yaml: loss: Input should be 'ce' or 'bce'.")

    assert pipeline.exit_code(main) == 1
    assert capsys.readouterr().err == "error: params.yaml: loss: Input should be 'ce' or 'bce'.\n"


def test_a_stopped_stage_prints_no_traceback(capsys):
    def main():
        raise KeyboardInterrupt

    assert pipeline.exit_code(main) == 130
    assert capsys.readouterr().err == "stopped: run the same command again to go on\n"


def test_sigterm_lets_a_stage_clean_up():
    cleaned_up = []

    def main():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            cleaned_up.append(1)

    assert pipeline.exit_code(main) == 130
    assert cleaned_up == [1]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_file_that_cannot_be_written_is_one_sentence(capsys, number):
    def main():
        raise OSError(number, os.strerror(number), "artifacts/versions.json")

    assert pipeline.exit_code(main) == 1
    reason = os.strerror(number)
    expected = (
        f"error: artifacts/versions.json cannot be used ({reason}): make it readable and writable for this user.\n"
    )
    assert capsys.readouterr().err == expected


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        pipeline.exit_code(lambda: 1 / 0)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("database or disk is full")]
)
def test_a_full_disk_is_one_sentence(capsys, error):
    def main():
        try:
            raise error
        except Exception as first:
            raise RuntimeError("cannot be saved") from first

    assert pipeline.exit_code(main) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: No space left on the disk of /") and said.count("\n") == 1


def test_an_error_that_does_not_name_a_full_disk(capsys, monkeypatch):
    monkeypatch.setattr(pipeline, "FULL_BYTES", 2**80)

    def main():
        raise RuntimeError("basic_ios::clear: iostream error")

    assert pipeline.exit_code(main) == 1
    assert "No space left" in capsys.readouterr().err
