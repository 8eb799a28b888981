"""Distillation: beside its labels, a classifier learns to predict the feature maps of a teacher (Romero et al. 2015, FitNets).

A label is one number for an image, a teacher's feature maps are thousands: a network that starts from random weights learns from
them, with few images, what it does not find by the labels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfganext.errors import UserError
from dfganext.models import classifier
from dfganext.settings import Teacher


class Student(nn.Module):
    """A classifier, and 1×1 convolutions that predict a teacher's feature maps from its own.

    Args:
        model: the classifier; `student.model` is the same object.
        pairs: for each of its maps that is used, the index among its maps, its channels, and the channels of the teacher's map.
    """

    def __init__(self, model: nn.Module, pairs: list[tuple[int, int, int]]) -> None:
        super().__init__()
        self.model = model
        self.indices = [index for index, _, _ in pairs]
        self.projections = nn.ModuleList(nn.Conv2d(own, teachers, 1) for _, own, teachers in pairs)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Images (N, 3, H, W) -> the head's logits, and for each pair the predicted map, (N, C, h, w)."""
        final, maps = self.model.forward_intermediates(images)  # type: ignore[operator]
        predicted = [projection(maps[index]) for projection, index in zip(self.projections, self.indices, strict=True)]
        return self.model.forward_head(final), predicted  # type: ignore[operator]


class Distillation:
    """A frozen teacher, and the student that imitates its feature maps: of each size that both have, the deepest of each.

    Args:
        model: the classifier to train.
        settings: the teacher's architecture and weights, and the strength of the imitation.
        size: width and height of what is trained on, images or crops, in pixels.
        seed: of the initial values of the student's projections.

    Raises:
        UserError: the teacher cannot be loaded, or one of the two has no feature maps, or they have no size in common.
    """

    def __init__(self, model: nn.Module, settings: Teacher, size: int, seed: int) -> None:
        assert settings.architecture is not None and settings.weights is not None
        device = next(model.parameters()).device
        self.strength = settings.strength
        teacher, self.config = classifier.build(
            settings.architecture, "ce", size, settings.weights, setting="convnext.teacher"
        )
        self.teacher = teacher.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
        blank = torch.zeros((1, 3, size, size), device=device)
        own, others = feature_maps(model, "convnext", blank), feature_maps(teacher, "convnext.teacher", blank)
        mine, theirs = ({one.shape[2:]: index for index, one in enumerate(maps)} for maps in (own, others))  # the last
        shared = [(index, theirs[shape]) for shape, index in mine.items() if shape in theirs]
        if not shared:
            raise UserError(
                f"convnext.teacher: no feature map of {settings.architecture} has the size of one of "
                f"{classifier.name_of(model)}'s; choose another teacher."
            )
        self.indices = [other for _, other in shared]
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            pairs = [(index, own[index].shape[1], others[other].shape[1]) for index, other in shared]
            self.student = Student(model, pairs).to(device)

    def error(self, predicted: list[Tensor], images: Tensor) -> Tensor:
        """Mean squared error of the predicted maps, averaged over the maps.

        Each channel of the teacher's maps is standardised over these images: predicting its mean has an error of 1.

        Args:
            predicted: the student's maps of these images.
            images: uint8 (N, H, W, 3).
        """
        with torch.no_grad():
            inputs = classifier.preprocess(images, self.config)
            maps = self.teacher.forward_intermediates(inputs, intermediates_only=True)  # type: ignore[operator]
            targets = [standardise(maps[index].float()) for index in self.indices]
        errors = [F.mse_loss(mine.float(), target) for mine, target in zip(predicted, targets, strict=True)]
        return torch.stack(errors).mean()


def standardise(maps: Tensor) -> Tensor:
    """Each channel of (N, C, h, w) with mean 0 and variance 1; 0 where it is constant."""
    variance, mean = torch.var_mean(maps, dim=(0, 2, 3), correction=0, keepdim=True)
    return (maps - mean) / (variance + 1e-5).sqrt()


@torch.no_grad()
def feature_maps(model: nn.Module, setting: str, images: Tensor) -> list[Tensor]:
    """The feature maps of each stage of a timm classifier: images (N, 3, H, W) -> (N, C, h, w) each.

    UserError, which names the setting's architecture, if it has none.
    """
    architecture = classifier.name_of(model)
    if not hasattr(model, "forward_intermediates"):
        raise UserError(
            f"{setting}.architecture: timm gives no feature maps of {architecture}; choose another, or set the architecture "
            "and weights of convnext.teacher to null."
        )
    was_training = model.training
    with classifier.network_errors(architecture, images.shape[-1], setting):
        maps: list[Tensor] = model.eval().forward_intermediates(images, intermediates_only=True)  # type: ignore[operator]
    model.train(was_training)
    return maps
