"""Real, fake, or unsure: the decision for an image from its p_fake and its novelty."""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

UNSURE: Literal["unsure"] = "unsure"

NO_RULE = "the model has no thresholds for decisions"


class Decision(NamedTuple):
    """decision is "real", "fake" or "unsure"; reason says why it is "unsure", and is None otherwise."""

    decision: Literal["real", "fake", "unsure"]
    reason: str | None


@dataclass(frozen=True, config=ConfigDict(strict=True, allow_inf_nan=False))
class DecisionRule:
    """An image is unsure if its novelty is above novel_above; else fake if p_fake > fake_above, real if p_fake <= real_up_to.

    max_error is the permitted error rate among the images called fake, and among those called real. fake_above or real_up_to
    is None where the validation images do not show that rate; novel_above is None where novelty is not judged.
    """

    max_error: float
    real_up_to: float | None
    fake_above: float | None
    novel_above: float | None = None

    def decide(self, p_fake: float, novelty: float) -> Decision:
        """Decide on one image; novelty is ignored where novel_above is None."""
        if self.is_novel(novelty):
            return Decision(UNSURE, f"unlike the training images: novelty {novelty:.3f}, limit {self.novel_above:.3f}")
        if self.fake_above is not None and p_fake > self.fake_above:
            return Decision("fake", None)
        if self.real_up_to is not None and p_fake <= self.real_up_to:
            return Decision("real", None)
        if self.fake_above is None or self.real_up_to is None:
            return Decision(
                UNSURE, f"too few or too hard validation images to promise at most {100 * self.max_error:g} % errors"
            )
        return Decision(UNSURE, f"p_fake is between {self.real_up_to:.3f} and {self.fake_above:.3f}")

    def is_novel(self, novelty: float) -> bool:
        """Whether the image is unlike the training images."""
        return self.novel_above is not None and novelty > self.novel_above

    def with_threshold(self, threshold: float) -> DecisionRule:
        """The rule for another decision threshold: it never contradicts the label."""
        return dataclasses.replace(
            self,
            real_up_to=None if self.real_up_to is None else min(self.real_up_to, threshold),
            fake_above=None if self.fake_above is None else max(self.fake_above, threshold),
        )


def decide(rule: DecisionRule | None, p_fake: float, novelty: float) -> Decision:
    """As `DecisionRule.decide`; "unsure" without a rule, which models saved until version 0.1 lack."""
    return Decision(UNSURE, NO_RULE) if rule is None else rule.decide(p_fake, novelty)
