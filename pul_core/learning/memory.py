"""Memories that stand where a classifier's weights would: one unit vector a class (Cluster Contrast) or an image (SpCL).

No gradient reaches the vectors: they begin as features, or as the means of their classes, and follow the features that training sees.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def class_means(features: Tensor, classes: Tensor, *, num_classes: int) -> Tensor:
    """Return the unit vector of each class: ``normalise(mean of f / |f| over the images of the class)``.

    Args:
        features: (n, d), any length.
        classes: (n,) in [0, num_classes).
        num_classes: k.

    Returns:
        (k, d) of length 1; zeros for a class without an image, or whose images cancel out.

    Source: Dai et al. 2021 (Cluster Contrast), section 3; a class without an image is ours.

    Example:
        >>> class_means(torch.tensor([[3.0, 0], [0, 2], [0, 5]]), torch.tensor([0, 0, 2]), num_classes=3)
        tensor([[0.7071, 0.7071],
                [0.0000, 0.0000],
                [0.0000, 1.0000]])
    """
    sums = features.new_zeros(num_classes, features.shape[1]).index_add_(0, classes, F.normalize(features))
    return F.normalize(sums)  # a mean's direction is its sum's


def update_memory(memory: Tensor, features: Tensor, classes: Tensor, *, momentum: float) -> None:
    """Let the vectors follow a batch: ``memory[c] <- normalise(momentum * memory[c] + (1 - momentum) * f / |f|)``, image after image.

    Classes do not meet, so only the order within a class matters, which is the batch's: all classes' first images are taken at once, then
    all second ones. P x K batches take K turns.

    Args:
        memory: (k, d) of length 1, changed in place.
        features: (b, d), any length.
        classes: (b,) in [0, k).
        momentum: share of the old vector, in [0, 1].

    Source: Dai et al. 2021, section 3 (momentum update by every query instance).

    Example:
        >>> memory = torch.eye(2)
        >>> update_memory(memory, torch.tensor([[0.0, 4.0]]), torch.tensor([0]), momentum=0.5)
        >>> memory
        tensor([[0.7071, 0.7071],
                [0.0000, 1.0000]])
    """
    features = F.normalize(features)
    turn = (classes[:, None] == classes).tril(-1).sum(1)  # (b,) how many of the same class stand before
    for number in range(int(turn.max()) + 1):
        now = turn == number
        moved = classes[now]
        memory[moved] = F.normalize(momentum * memory[moved] + (1 - momentum) * features[now])


class ClusterMemory(nn.Module):
    """Maps features (b, d) to logits (b, k): cosines to the k vectors, divided by the temperature.

    The vectors are a buffer, so they are part of a training's state. They are zero until `begin`. A class that had no image then keeps
    the logit 0 until a batch brings one.

    Args:
        num_classes: k.
        num_features: d.
        momentum: see `update_memory`.
        temperature: above 0; the smaller, the sharper.

    Source: Dai et al. 2021, momentum 0.1, temperature 0.05.

    Example:
        >>> memory = ClusterMemory(2, 3, momentum=0.1, temperature=0.5)
        >>> memory.begin(torch.tensor([[1.0, 0, 0], [0, 1, 0]]), torch.tensor([0, 1]))
        >>> memory(torch.tensor([[7.0, 0, 0]]))
        tensor([[2., 0.]])
    """

    vectors: Tensor

    def __init__(self, num_classes: int, num_features: int, *, momentum: float, temperature: float) -> None:
        super().__init__()
        self.momentum, self.temperature = momentum, temperature
        self.register_buffer("vectors", torch.zeros(num_classes, num_features))

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits, in float32 whatever is autocast: divided by the temperature, bfloat16's rounding would be large."""
        with torch.autocast(features.device.type, enabled=False):
            return F.normalize(features.float()) @ self.class_vectors().T / self.temperature

    def class_vectors(self) -> Tensor:
        """Return what features are compared with (k, d)."""
        return self.vectors

    @torch.no_grad()
    def begin(self, features: Tensor, entries: Tensor) -> None:
        """Set each vector to the mean of its features; entries (m,) say whose each is: here, that of its class."""
        self.vectors.copy_(class_means(features, entries, num_classes=len(self.vectors)))

    @torch.no_grad()
    def follow(self, features: Tensor, entries: Tensor) -> None:
        """Take up the features of a step."""
        update_memory(self.vectors, features.float(), entries, momentum=self.momentum)


class ImageMemory(ClusterMemory):
    """The same with a vector an image, entry i being image i's. A class is compared with as the plain mean of its images' vectors.

    That mean is shorter than 1 where a class is spread, so its logits are smaller than those of a class of one image.

    Args:
        classes: (m,) class of each image, in [0, num_classes).
        num_classes: k; a class without an image has the logit 0.
        num_features: d.
        momentum: see `update_memory`.
        temperature: above 0; the smaller, the sharper.

    Source: Ge et al. 2020 (SpCL), section 3.1, momentum 0.2, temperature 0.05; without its source, whose classes it would hold as well.

    Example:
        >>> memory = ImageMemory(torch.tensor([0, 0, 1]), 2, 2, momentum=0.2, temperature=1.0)
        >>> memory.begin(torch.tensor([[1.0, 0], [0, 3], [-2, 0]]), torch.arange(3))
        >>> memory(torch.tensor([[5.0, 0]]))
        tensor([[ 0.5000, -1.0000]])
    """

    classes: Tensor

    def __init__(self, classes: Tensor, num_classes: int, num_features: int, *, momentum: float, temperature: float) -> None:
        super().__init__(len(classes), num_features, momentum=momentum, temperature=temperature)
        self.num_classes = num_classes
        self.register_buffer("classes", classes)

    def class_vectors(self) -> Tensor:
        """Return the mean vector of each class (k, d)."""
        sums = self.vectors.new_zeros(self.num_classes, self.vectors.shape[1]).index_add_(0, self.classes, self.vectors)
        return sums / torch.bincount(self.classes, minlength=self.num_classes).clamp(min=1)[:, None]
