"""Augmentation of whole batches on the device, with a random draw for each image. Not a pipeline of per-image transforms."""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

# ImageNet's mean colour, what an erased patch is filled with so that it becomes zero after normalisation.
MEAN_PIXEL = (124, 116, 104)


def flip(images: Tensor, probability: float, generator: Generator) -> Tensor:
    """Mirror each image left to right with a probability.

    Args:
        images: (b, 3, h, w) uint8.
        probability: in [0, 1], of each image.
        generator: on the CPU, whatever device the images are on.

    Returns:
        (b, 3, h, w) uint8.

    Example:
        >>> flip(torch.arange(3, dtype=torch.uint8).view(1, 1, 1, 3), 1.0, Generator()).flatten().tolist()
        [2, 1, 0]
    """
    mirrored = torch.rand(len(images), generator=generator) < probability
    return torch.where(mirrored.to(images.device).view(-1, 1, 1, 1), images.flip(3), images)


def pad_crop(images: Tensor, share: float, generator: Generator) -> Tensor:
    """Pad each image by black pixels on all sides and cut its old size out again at a random place.

    Args:
        images: (b, 3, h, w) uint8.
        share: padding on each side, as a share of the width; 0 changes nothing.
        generator: on the CPU.

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
    offsets = torch.randint(0, 2 * padding + 1, (2, b, 1), generator=generator).to(images.device)
    rows = offsets[0] + torch.arange(h, device=images.device)  # (b, h)
    columns = offsets[1] + torch.arange(w, device=images.device)  # (b, w)
    batch = torch.arange(b, device=images.device).view(-1, 1, 1)
    return padded[batch, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)


def erase(images: Tensor, probability: float, generator: Generator) -> Tensor:
    """Paint one rectangle of each image in the mean colour with a probability: 2 % to 40 % of its area, aspect ratio 0.3 to 3.3.

    Args:
        images: (b, 3, h, w) uint8.
        probability: in [0, 1], of each image.
        generator: on the CPU.

    Returns:
        (b, 3, h, w) uint8.

    Source: Zhong et al. 2020, Random Erasing; a rectangle larger than the image is clipped instead of drawn again.

    Example:
        >>> erased = erase(torch.zeros(1, 3, 16, 8, dtype=torch.uint8), 1.0, Generator().manual_seed(0))
        >>> bool((erased[0, 0] == MEAN_PIXEL[0]).any())
        True
    """
    b, _, h, w = images.shape
    chosen, size, shape, top, left = torch.rand(5, b, generator=generator).to(images.device)
    area = (0.02 + 0.38 * size) * h * w
    aspect = torch.exp(math.log(0.3) + shape * (math.log(1 / 0.3) - math.log(0.3)))
    patch_h = (area * aspect).sqrt().clamp(1, h).floor()
    patch_w = (area / aspect).sqrt().clamp(1, w).floor()
    first_row = (top * (h - patch_h + 1)).floor()
    first_column = (left * (w - patch_w + 1)).floor()
    row, column = torch.arange(h, device=images.device), torch.arange(w, device=images.device)
    in_rows = (row >= first_row[:, None]) & (row < (first_row + patch_h)[:, None])  # (b, h)
    in_columns = (column >= first_column[:, None]) & (column < (first_column + patch_w)[:, None])  # (b, w)
    mask = in_rows[:, None, :, None] & in_columns[:, None, None, :] & (chosen < probability)[:, None, None, None]
    mean = torch.tensor(MEAN_PIXEL, dtype=torch.uint8, device=images.device).view(1, 3, 1, 1)
    return torch.where(mask, mean, images)


def rotate_shift(images: Tensor, degrees: float, share: float, generator: Generator) -> Tensor:
    """Rotate each image about its centre and shift it, both uniformly at random, edge pixels filling what becomes empty.

    Args:
        images: (b, 3, h, w) uint8.
        degrees: largest rotation either way.
        share: largest shift, as a share of the height and of the width.
        generator: on the CPU.

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
    angle, down, right = (2 * torch.rand(3, b, generator=generator) - 1).to(images.device)
    angle = angle * math.radians(degrees)
    cos, sin = angle.cos(), angle.sin()
    # Coordinates run from -1 to 1 along both axes, so a rotation in pixels carries the aspect ratio.
    theta = torch.stack((torch.stack((cos, -sin * h / w, 2 * share * right), 1), torch.stack((sin * w / h, cos, 2 * share * down), 1)), 1)
    grid = F.affine_grid(theta, [b, 3, h, w], align_corners=False)
    moved = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return moved.round_().to(torch.uint8).contiguous(memory_format=torch.channels_last)


def colour_jitter(images: Tensor, share: float, generator: Generator) -> Tensor:
    """Show each image as another camera might: other exposure, white balance and contrast, each drawn uniformly.

    ``jittered_c = ((1 + contrast) * (image_c - mean) + mean) * (1 + exposure + balance_c)``, each of the five within +- share.

    Args:
        images: (b, 3, h, w) uint8.
        share: largest relative change; 0 changes nothing.
        generator: on the CPU.

    Returns:
        (b, 3, h, w) uint8, channels_last.

    Source: colour jitter as in Howard 2013; the form, a camera's gains, is ours.

    Example:
        >>> grey = torch.full((1, 3, 2, 2), 100, dtype=torch.uint8)
        >>> jittered = colour_jitter(grey, 0.1, Generator().manual_seed(0))
        >>> bool(((jittered >= 80) & (jittered <= 120)).all())
        True
    """
    if share == 0:
        return images
    draws = share * (2 * torch.rand(5, len(images), generator=generator) - 1).to(images.device)
    gain = (1 + draws[:3] + draws[3]).T[:, :, None, None]  # (b, 3, 1, 1)
    pixels = images.float()
    mean = pixels.mean((1, 2, 3), keepdim=True)
    jittered = ((pixels - mean) * (1 + draws[4].view(-1, 1, 1, 1)) + mean) * gain
    return jittered.clamp_(0, 255).round_().to(torch.uint8).contiguous(memory_format=torch.channels_last)


def augment(
    images: Tensor,
    *,
    flip_probability: float,
    crop_share: float,
    erase_probability: float,
    rotation_degrees: float,
    shift_share: float,
    colour_share: float,
    generator: Generator,
) -> Tensor:
    """Apply what is switched on, in the order rotate and shift, colour jitter, flip, pad-crop, erase.

    Args and units as in the functions above.

    Returns:
        (b, 3, h, w) uint8.

    Example:
        >>> images = torch.zeros(2, 3, 16, 8, dtype=torch.uint8)
        >>> off = dict(flip_probability=0, crop_share=0, erase_probability=0, rotation_degrees=0, shift_share=0, colour_share=0)
        >>> bool((augment(images, **off, generator=Generator()) == images).all())
        True
    """
    images = rotate_shift(images, rotation_degrees, shift_share, generator)
    images = colour_jitter(images, colour_share, generator)
    if flip_probability > 0:
        images = flip(images, flip_probability, generator)
    images = pad_crop(images, crop_share, generator)
    return erase(images, erase_probability, generator) if erase_probability > 0 else images
