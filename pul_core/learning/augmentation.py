"""Random augmentation of batches of training images, with separate random parameters for each image.

The random numbers are drawn on the device of the images, so that a step never waits for a copy from the host.
"""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from pul_core.learning.constants import constant, positions
from pul_core.settings import Augmentation

MEAN_PIXEL = (124, 116, 104)  # ImageNet's mean colour, which becomes zero after normalisation


def flip(images: Tensor, probability: float, generator: Generator) -> Tensor:
    """Mirror each image left to right with the given probability.

    Args:
        images: (b, 3, h, w) uint8.
        probability: in [0, 1], per image; 0 changes nothing.
        generator: on the device of the images.

    Returns:
        (b, 3, h, w) uint8.

    Example:
        >>> flip(torch.arange(3, dtype=torch.uint8).view(1, 1, 1, 3), 1.0, Generator()).flatten().tolist()
        [2, 1, 0]
    """
    if probability == 0:
        return images
    mirrored = torch.rand(len(images), generator=generator, device=images.device) < probability
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)


def pad_crop(images: Tensor, share: float, generator: Generator) -> Tensor:
    """Pad each image with black pixels on all sides and crop it to its original size at a random position.

    Args:
        images: (b, 3, h, w) uint8.
        share: padding on each side, as a share of the image width; 0 changes nothing.
        generator: on the device of the images.

    Returns:
        (b, 3, h, w) uint8, channels_last.

    Example:
        >>> pad_crop(torch.ones(4, 3, 8, 4, dtype=torch.uint8), 0.25, Generator()).shape
        torch.Size([4, 3, 8, 4])
    """
    b, _, h, w = images.shape
    padding = round(share * w)
    if padding == 0:
        return images
    padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))  # (b, h', w', 3)
    offsets = torch.randint(0, 2 * padding + 1, (2, b, 1), generator=generator, device=images.device)
    rows, columns = (offset + positions(side, images.device) for offset, side in zip(offsets, (h, w), strict=True))  # (b, h), (b, w)
    batch = positions(b, images.device).view(-1, 1, 1)
    return padded[batch, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)


def erase(images: Tensor, probability: float, generator: Generator) -> Tensor:
    """Random erasing: fill a rectangle of each image with the mean colour, with the given probability.

    The rectangle covers 2 % to 40 % of the image, with an aspect ratio of 0.3 to 3.3.

    Args:
        images: (b, 3, h, w) uint8.
        probability: in [0, 1], per image; 0 changes nothing.
        generator: on the device of the images.

    Returns:
        (b, 3, h, w) uint8.

    Source: Zhong et al. 2020, Random Erasing; a rectangle that does not fit in the image is clipped, not drawn again.

    Example:
        >>> erased = erase(torch.zeros(1, 3, 16, 8, dtype=torch.uint8), 1.0, Generator().manual_seed(0))
        >>> bool((erased[0, 0] == MEAN_PIXEL[0]).any())
        True
    """
    if probability == 0:
        return images
    b, _, h, w = images.shape
    draws = torch.rand(5, b, generator=generator, device=images.device)
    area = (0.02 + 0.38 * draws[1]) * h * w
    aspect = torch.exp(math.log(0.3) + draws[2] * (math.log(1 / 0.3) - math.log(0.3)))
    limits = constant((h, w), images.device).view(2, 1)
    sides = torch.stack((area * aspect, area / aspect)).sqrt().clamp(min=1).minimum(limits).floor()  # (2, b): height and width
    first = (draws[3:] * (limits - sides + 1)).floor()  # (2, b): row and column
    last = first + sides
    row, column = positions(h, images.device), positions(w, images.device)
    in_rows = (row >= first[0, :, None]) & (row < last[0, :, None])  # (b, h)
    in_columns = (column >= first[1, :, None]) & (column < last[1, :, None])  # (b, w)
    mask = in_rows[:, None, :, None] & in_columns[:, None, None, :] & (draws[0] < probability)[:, None, None, None]
    mean = constant(MEAN_PIXEL, images.device, torch.uint8).view(1, 3, 1, 1)
    return torch.where(mask, mean, images)


def rotate_shift(images: Tensor, degrees: float, share: float, generator: Generator) -> Tensor:
    """Rotate each image about its centre and shift it, both uniformly at random; the border is filled by repeating the edge pixels.

    Args:
        images: (b, 3, h, w) uint8.
        degrees: largest rotation in either direction.
        share: largest shift in either direction, as a share of the height and of the width; with both 0 nothing changes.
        generator: on the device of the images.

    Returns:
        (b, 3, h, w) uint8, channels_last.

    Source: the authors' code (Keras ``ImageDataGenerator(rotation_range=20, width_shift_range=0.2, height_shift_range=0.2)``).

    Example:
        >>> flat = torch.full((2, 3, 16, 8), 7, dtype=torch.uint8)
        >>> bool((rotate_shift(flat, 20, 0.2, Generator()) == 7).all())
        True
    """
    if degrees == 0 and share == 0:
        return images
    b, _, h, w = images.shape
    angle, down, right = 2 * torch.rand(3, b, generator=generator, device=images.device) - 1
    angle = angle * math.radians(degrees)
    cos, sin = angle.cos(), angle.sin()
    # Coordinates run from -1 to 1 along both axes, so a rotation in pixels has to include the aspect ratio.
    theta = torch.stack((torch.stack((cos, -sin * h / w, 2 * share * right), 1), torch.stack((sin * w / h, cos, 2 * share * down), 1)), 1)
    grid = F.affine_grid(theta, [b, 3, h, w], align_corners=False)
    moved = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return moved.round_().to(torch.uint8).contiguous(memory_format=torch.channels_last)


def colour_jitter(images: Tensor, share: float, generator: Generator) -> Tensor:
    """Colour jitter: change the exposure, white balance and contrast of each image, uniformly at random, as a different camera would.

    ``jittered_c = ((1 + contrast) * (image_c - mean) + mean) * (1 + exposure + balance_c)``, where the contrast,
    the exposure and the balance of the three channels are drawn from [-share, share].

    Args:
        images: (b, 3, h, w) uint8.
        share: largest relative change; 0 changes nothing.
        generator: on the device of the images.

    Returns:
        (b, 3, h, w) uint8, channels_last.

    Source: colour jitter is from Howard 2013; this formula, which models the gains of a camera, is ours.

    Example:
        >>> grey = torch.full((1, 3, 2, 2), 100, dtype=torch.uint8)
        >>> jittered = colour_jitter(grey, 0.1, Generator().manual_seed(0))
        >>> bool(((jittered >= 80) & (jittered <= 120)).all())
        True
    """
    if share == 0:
        return images
    draws = share * (2 * torch.rand(5, len(images), generator=generator, device=images.device) - 1)
    gain = (1 + draws[:3] + draws[3]).T[:, :, None, None]  # (b, 3, 1, 1)
    pixels = images.float()
    mean = pixels.mean((1, 2, 3), keepdim=True)
    jittered = ((pixels - mean) * (1 + draws[4].view(-1, 1, 1, 1)) + mean) * gain
    return jittered.clamp_(0, 255).round_().to(torch.uint8).contiguous(memory_format=torch.channels_last)


def augment(images: Tensor, settings: Augmentation, generator: Generator) -> Tensor:
    """Apply all augmentations of the settings, in the order: rotate and shift, colour jitter, flip, pad and crop, erase.

    Args:
        images: (b, 3, h, w) uint8.
        settings: probabilities and ranges; an augmentation whose setting is 0 is skipped and draws no random numbers.
        generator: on the device of the images.

    Returns:
        (b, 3, h, w) uint8.

    Example:
        >>> images = torch.zeros(2, 3, 16, 8, dtype=torch.uint8)
        >>> settings = Augmentation(flip_probability=0.5, crop_share=0, erase_probability=0)
        >>> bool((augment(images, settings, Generator()) == images).all())
        True
    """
    images = rotate_shift(images, settings.rotation_degrees, settings.shift_share, generator)
    images = colour_jitter(images, settings.colour_share, generator)
    images = flip(images, settings.flip_probability, generator)
    images = pad_crop(images, settings.crop_share, generator)
    return erase(images, settings.erase_probability, generator)
