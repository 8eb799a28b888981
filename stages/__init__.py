"""The stages of dvc.yaml, run as `python -m stages.NAME` from the root of a workspace.

Each workspace runs its own code: an experiment queued from one version of src/ must not import another version, as it would
from an installed package, editable or not.
"""

import sys
from pathlib import Path
from types import TracebackType

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from dfganext import pipeline, runtime

runtime.prepare(keep_all=True)


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ctrl+C while a stage still imports its modules has no traceback either."""
    if issubclass(kind, KeyboardInterrupt):
        print(pipeline.STOPPED, file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _report
