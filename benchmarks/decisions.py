"""What a decision adds to a prediction: the distance to the features of 2,000 training images, and the comparison with thresholds.

One image at a time, as a served request has it. The features come from the forward pass, which is needed for p_fake anyway.
"""

from __future__ import annotations

import numpy as np

from benchmarks.harness import Goal, Table, alternate
from dfganext.evaluation.decision import DecisionRule
from dfganext.models.novelty import MAX_IMAGES, Neighbours

WIDTHS = {"convnext_tiny": 768, "tf_efficientnet_lite0": 1280}
"""Number of features of the architectures."""

CALLS, ROUNDS = 200, 5
RULE = DecisionRule(max_error=0.05, real_up_to=0.4, fake_above=0.6, novel_above=0.3)


def main() -> None:
    table = Table("decisions")
    for architecture, width in WIDTHS.items():
        measure(table, architecture, width, CALLS, ROUNDS)
    table.write("numpy")


def measure(table: Table, architecture: str, width: int, calls: int, rounds: int) -> None:
    """Milliseconds per image."""
    rng = np.random.default_rng(1)
    neighbours = Neighbours.of(rng.normal(size=(MAX_IMAGES, width)))
    images = rng.normal(size=(calls, 1, width)).astype(np.float32)

    def decide() -> None:
        for image in images:
            RULE.decide(0.7, float(neighbours.novelty(image)[0]))

    seconds = alternate({"ours": decide}, rounds)["ours"]
    table.add(architecture, "time", "ms per image", [1e3 * one / calls for one in seconds], goal=Goal("ours", most=2))


if __name__ == "__main__":
    main()
