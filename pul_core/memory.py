"""A memory of one unit vector a class, which stands where a classifier's weights would: Cluster Contrast. It keeps no single images.

No gradient reaches the vectors: they begin as the means of their classes and follow the features that training sees.
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
            return F.normalize(features.float()) @ self.vectors.T / self.temperature

    @torch.no_grad()
    def begin(self, features: Tensor, classes: Tensor) -> None:
        """Set the vectors to the class means of these features."""
        self.vectors.copy_(class_means(features, classes, num_classes=len(self.vectors)))

    @torch.no_grad()
    def follow(self, features: Tensor, classes: Tensor) -> None:
        """Take up the features of a step."""
        update_memory(self.vectors, features.float(), classes, momentum=self.momentum)
