"""Feature memories that replace the weights of a classifier: one unit vector per class (Cluster Contrast) or per image (SpCL).

The vectors receive no gradient. They are initialised with features of the images, and updated with the features of each training step.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pul_core.arrays import Ints
from pul_core.learning.constants import positions


def class_means(features: Tensor, classes: Tensor, *, num_classes: int) -> Tensor:
    """Return the mean direction of each class: ``normalise(mean of f / |f| over the images of the class)``.

    Args:
        features: (n, d), of any length.
        classes: (n,) in [0, num_classes).
        num_classes: k.

    Returns:
        (k, d), rows of length 1; a row is zero if its class has no image, or if the features of its images cancel out.

    Source: Dai et al. 2021 (Cluster Contrast), section 3; the zero row of a class without an image is ours.

    Example:
        >>> class_means(torch.tensor([[3.0, 0], [0, 2], [0, 5]]), torch.tensor([0, 0, 2]), num_classes=3)
        tensor([[0.7071, 0.7071],
                [0.0000, 0.0000],
                [0.0000, 1.0000]])
    """
    sums = features.new_zeros(num_classes, features.shape[1]).index_add_(0, classes, F.normalize(features))
    return F.normalize(sums)  # the sum has the direction of the mean


def update_memory(memory: Tensor, features: Tensor, entries: Tensor, *, momentum: float, passes: int | None = None) -> None:
    """Update the vectors with a batch: ``memory[e] <- normalise(momentum * memory[e] + (1 - momentum) * f / |f|)``, image by image.

    Only the order of the images of one entry matters. Therefore the first images of all entries are processed at once, then the second
    ones, and so on: K passes for a P x K batch. Each pass has the size of the batch, so that no shape depends on values on the device.

    Args:
        memory: (k, d), rows of length 1, changed in place.
        features: (b, d), of any length.
        entries: (b,) the row of ``memory`` that each image updates.
        momentum: share of the old vector, in [0, 1].
        passes: the largest number of images of one entry, see `count_passes`; None finds it, for which the host waits for the device.

    Source: Dai et al. 2021, section 3 (momentum update by every query instance).

    Example:
        >>> memory = torch.eye(2)
        >>> update_memory(memory, torch.tensor([[0.0, 4.0]]), torch.tensor([0]), momentum=0.5)
        >>> memory
        tensor([[0.7071, 0.7071],
                [0.0000, 1.0000]])
    """
    b = len(entries)
    same = entries[:, None] == entries  # (b, b)
    first = torch.where(same, positions(b, entries.device), b).amin(1)  # (b,) the first image of each image's entry
    occurrence = same.tril(-1).sum(1)  # (b,) number of earlier images of the same entry
    if passes is None:
        passes = int(occurrence.max()) + 1
    # Row i of `vectors` is the vector of image i if that is the first image of its entry; the other rows are not used. Column i of `images`
    # holds the images of that entry in their order, and b where there are no more.
    images = first.new_full((passes, b), b)
    images[occurrence, first] = positions(b, entries.device)
    features, vectors = F.pad(F.normalize(features), (0, 0, 0, 1)), memory[entries]
    for image in images:
        updated = F.normalize(momentum * vectors + (1 - momentum) * features[image])
        vectors = torch.where((image < b)[:, None], updated, vectors)
    memory[entries] = vectors[first]  # images of the same entry write the same values


def count_passes(entries: Ints) -> int:
    """Return the number of passes of `update_memory` for a batch, i.e. the largest number of images of one entry.

    Example:
        >>> count_passes(np.array([7, 2, 7]))
        2
    """
    return int(np.unique(entries, return_counts=True)[1].max())


class ClusterMemory(nn.Module):
    """Map features (b, d) to logits (b, k): cosines to one vector per class, divided by the temperature.

    The vectors are a buffer, so they are part of the state dict. They are zero until `initialize` is called. A class without an image keeps
    the logit 0 until a batch contains one.

    Args:
        num_classes: k.
        num_features: d.
        momentum: see `update_memory`.
        temperature: above 0; a smaller temperature gives a sharper softmax.

    Source: Dai et al. 2021, momentum 0.1, temperature 0.05.

    Example:
        >>> memory = ClusterMemory(2, 3, momentum=0.1, temperature=0.5)
        >>> memory.initialize(torch.tensor([[1.0, 0, 0], [0, 1, 0]]), torch.tensor([0, 1]))
        >>> memory(torch.tensor([[7.0, 0, 0]]))
        tensor([[2., 0.]])
    """

    vectors: Tensor

    def __init__(self, num_classes: int, num_features: int, *, momentum: float, temperature: float) -> None:
        super().__init__()
        self.momentum, self.temperature = momentum, temperature
        self.register_buffer("vectors", torch.zeros(num_classes, num_features))

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits, computed from float32 even under autocast: the temperature would amplify bfloat16's rounding errors."""
        with torch.autocast(features.device.type, enabled=False):
            return F.normalize(features.float()) @ self.class_vectors().T / self.temperature

    def class_vectors(self) -> Tensor:
        """Return the vector of each class (k, d)."""
        return self.vectors

    @torch.no_grad()
    def initialize(self, features: Tensor, entries: Tensor) -> None:
        """Set each vector to the mean direction of its features.

        Args:
            features: (m, d), of any length.
            entries: (m,) the vector that each feature belongs to: that of the image's class, or of the image in an `ImageMemory`.
        """
        self.vectors.copy_(class_means(features, entries, num_classes=len(self.vectors)))

    @torch.no_grad()
    def update(self, features: Tensor, entries: Tensor, *, passes: int | None = None) -> None:
        """Update the vectors with the features (b, d) of a training step; entries (b,) as in `initialize`, passes as in `update_memory`."""
        update_memory(self.vectors, features.float(), entries, momentum=self.momentum, passes=passes)


class ImageMemory(ClusterMemory):
    """A memory with one vector per image; a class is represented by the plain mean of the vectors of its images.

    The mean is shorter than 1 if the images of a class differ, so such a class has smaller logits than a class of one image.

    Args:
        classes: (m,) class of each image, in [0, num_classes); entry i belongs to image i.
        num_classes: k; a class without an image has the logit 0.
        num_features: d.
        momentum: see `update_memory`.
        temperature: above 0; a smaller temperature gives a sharper softmax.

    Source: Ge et al. 2020 (SpCL), section 3.1, momentum 0.2, temperature 0.05; SpCL also includes the classes of the source domain.

    Example:
        >>> memory = ImageMemory(torch.tensor([0, 0, 1]), 2, 2, momentum=0.2, temperature=1.0)
        >>> memory.initialize(torch.tensor([[1.0, 0], [0, 3], [-2, 0]]), torch.arange(3))
        >>> memory(torch.tensor([[5.0, 0]]))
        tensor([[ 0.5000, -1.0000]])
    """

    classes: Tensor
    class_sizes: Tensor

    def __init__(self, classes: Tensor, num_classes: int, num_features: int, *, momentum: float, temperature: float) -> None:
        super().__init__(len(classes), num_features, momentum=momentum, temperature=temperature)
        self.num_classes = num_classes
        self.register_buffer("classes", classes)
        self.register_buffer("class_sizes", torch.bincount(classes, minlength=num_classes).clamp(min=1)[:, None], persistent=False)

    def class_vectors(self) -> Tensor:
        """Return the mean vector of each class (k, d)."""
        sums = self.vectors.new_zeros(self.num_classes, self.vectors.shape[1]).index_add_(0, self.classes, self.vectors)
        return sums / self.class_sizes
