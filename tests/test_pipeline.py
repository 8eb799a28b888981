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


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        pipeline.exit_code(lambda: 1 / 0)
