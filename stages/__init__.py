"""The stages of dvc.yaml, run as `python -m stages.NAME` from the root of a workspace.

Each workspace runs its own code: an experiment queued from one version of src/ must not import another version, as it would
from an installed package, editable or not.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from dfganext import runtime

runtime.prepare(keep_all=True)
