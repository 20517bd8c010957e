"""ResNet-20 on CIFAR-10: the paper's Figure 4 and the left half of Table 1.

The model is that of He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition" (2016), Section 4.2, with the
parameter-free shortcuts of their option A; images are padded by four pixels, cropped and flipped at random.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lsmooth.errors import DataError
from lsmooth.tasks.files import check_regular
from lsmooth.tasks.hub import load_hub
from lsmooth.tasks.task import Baseline, Data, Preset, Problem, Settings, Split, Task

CLASSES = 10
SIDE = 32

# One record of CIFAR-10's binary version: a label, then the red, green and blue planes, row by row.
_RECORD = 1 + 3 * SIDE * SIDE
_TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
_TEST_FILE = "test_batch.bin"

# The authors' published commands.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "generalized-signsgd": {"lr": 2e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-4},
    "adam": {"lr": 9e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-4},
    "sgd-momentum": {"lr": 0.07, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4},
    "sgd-clip-grad": {"lr": 0.5, "max_norm": 1.0, "weight_decay": 1e-4},
    "sgd-clip-momentum": {"lr": 10.0, "max_norm": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4},
    "sgd-momentum-normalized": {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4},
}


@dataclass(frozen=True, kw_only=True)
class ResNet20Settings(Settings):
    """Hyperparameters of ResNet-20's training; the learning rate stays as it is.

    Attributes:
        width: Channels of the first stage.
        augment: Crop and flip training images at random.
    """

    batch_size: int = 128
    epochs: int = 164
    width: int = 16
    augment: bool = True


# --- model ---


class _Block(nn.Module):
    """relu(x' + bn(conv(relu(bn(conv(x)))))), where x' is x, or x at every other pixel with zeros for new channels."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.stride = 1 if channels_in == channels else 2
        self.new_channels = channels - channels_in
        self.conv1 = nn.Conv2d(channels_in, channels, 3, self.stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        if self.stride == 2:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.new_channels))
        return functional.relu(inner + x)


class ResNet20(nn.Module):
    """The 20-layer network for 32x32 images: a convolution, three stages of three blocks, a linear layer.

    Stages have 16, 32 and 64 channels; from one to the next the side halves. 269,722 parameters with ten classes.
    Weights of convolutions and of the linear layer start as in He et al. 2015 (`kaiming_normal_`).

    Args:
        width: Channels of the first stage; the paper's is 16.
        classes: Number of classes.
    """

    def __init__(self, width: int = 16, classes: int = CLASSES) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        widths = [width] * 4 + [2 * width] * 3 + [4 * width] * 3
        self.blocks = nn.Sequential(*(_Block(before, after) for before, after in itertools.pairwise(widths)))
        self.linear = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, classes) of normalised images (n, 3, 32, 32)."""
        x = self.blocks(functional.relu(self.norm(self.conv(images))))
        return self.linear(x.mean((2, 3)))


# --- data ---


@dataclass(frozen=True)
class Images:
    """Labelled images: `pixels` (n, 3, 32, 32) uint8, `labels` (n,) int64."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Images:
        """Return the same images on `device`."""
        return Images(self.pixels.to(device), self.labels.to(device))

    def take(self, which: Tensor | slice) -> Images:
        """Return some of the images."""
        return Images(self.pixels[which], self.labels[which])


def read_cifar10(folder: str | Path) -> tuple[Images, Images]:
    """Read CIFAR-10's binary version (`data_batch_1.bin` … `data_batch_5.bin`, `test_batch.bin`).

    The files may lie in `folder` or in its subfolder `cifar-10-batches-bin`, as the archive unpacks.

    Returns:
        Training and test images.

    Raises:
        DataError: A file is missing, or is not a whole number of CIFAR-10 records.
    """
    folder = Path(folder)
    unpacked = folder / "cifar-10-batches-bin"
    place = unpacked if unpacked.is_dir() else folder
    missing = [name for name in (*_TRAIN_FILES, _TEST_FILE) if not (place / name).exists()]
    if missing:
        raise DataError(
            f"{place} lacks {', '.join(missing)}; unpack cifar-10-binary.tar.gz there, so that it holds "
            f"{_TRAIN_FILES[0]} to {_TRAIN_FILES[-1]} and {_TEST_FILE}."
        )
    return _read_records([place / name for name in _TRAIN_FILES]), _read_records([place / _TEST_FILE])


def _read_records(paths: list[Path]) -> Images:
    parts = []
    for path in paths:
        check_regular(path)
        flat = np.fromfile(path, dtype=np.uint8)
        records = flat.reshape(-1, _RECORD) if flat.size and flat.size % _RECORD == 0 else None
        if records is None or records[:, 0].max() >= CLASSES:
            raise DataError(
                f"{path} is not a CIFAR-10 binary batch ({flat.size:,} bytes, not records of {_RECORD:,} that begin "
                "with a label from 0 to 9); download cifar-10-binary.tar.gz again."
            )
        parts.append(records)
    records = np.concatenate(parts)
    pixels = records[:, 1:].reshape(-1, 3, SIDE, SIDE)
    return Images(torch.from_numpy(pixels.copy()), torch.from_numpy(records[:, 0].astype(np.int64)))


def _hub_images(splits: dict[str, Any], name: str) -> Images:
    """Return a split of the hub's copy: a column with a PNG image, and one with the label."""
    from PIL import Image

    if name not in splits:
        raise DataError(f"The data set has no split named {name}; it has {', '.join(splits)}.")
    split = splits[name]
    column = next((column for column in ("img", "image") if column in split.column_names), None)
    if column is None or "label" not in split.column_names:
        raise DataError(f"The data set has no columns img and label; it has {', '.join(split.column_names)}.")
    pixels = np.empty((len(split), SIDE, SIDE, 3), np.uint8)
    labels = np.empty(len(split), np.int64)
    for row, entry in enumerate(split):
        image = entry[column]
        # Without the hub's own description of the column, what comes is the file's bytes.
        try:
            opened = Image.open(io.BytesIO(image["bytes"])) if isinstance(image, dict) else image
            labels[row] = entry["label"]
            size = opened.size
        except (AttributeError, KeyError, OSError, OverflowError, TypeError, ValueError):
            raise DataError(f"Row {row} of {name} holds no image with a number; choose a data set of images.") from None
        if size != (SIDE, SIDE) or not 0 <= labels[row] < CLASSES:
            raise DataError(
                f"Row {row} of {name} is not an image of CIFAR-10: {opened.width}x{opened.height} pixels, label "
                f"{labels[row]}; choose a data set of 32x32 images with labels from 0 to 9."
            )
        pixels[row] = np.asarray(opened.convert("RGB"))
    return Images(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels))


def generate_images(count: int, seed: int) -> Images:
    """Draw `count` images of ten classes of shapes, the same for the same seed.

    The classes are disc, ring, square, frame, triangle, cross, a row of bars, a column of bars, checkerboard and two
    discs. Colours of shape and ground, place, size, tilt and noise are drawn at random; none of them
    tells anything of the class, so that the mean image of each class is nearly the same, and a linear classifier does
    little better than chance.

    Args:
        count: How many images.
        seed: Of the generator.
    """
    rng = np.random.default_rng((seed, count))
    labels = rng.integers(CLASSES, size=count)
    size = rng.uniform(6, 11, count)
    angle = rng.uniform(-0.35, 0.35, count)[:, None, None]
    margin = size + 1
    centre = margin[:, None] + rng.uniform(size=(count, 2)) * (SIDE - 1 - 2 * margin)[:, None]
    grid = np.arange(SIDE, dtype=np.float64)
    pixels = np.empty((count, 3, SIDE, SIDE), np.uint8)
    # In blocks, to save memory.
    for start in range(0, count, 1000):
        block = slice(start, min(count, start + 1000))
        down = (grid[None, :, None] - centre[block, 0, None, None]) / size[block, None, None]
        along = (grid[None, None, :] - centre[block, 1, None, None]) / size[block, None, None]
        cos, sin = np.cos(angle[block]), np.sin(angle[block])
        inside = _shapes(cos * along - sin * down, sin * along + cos * down)
        n = len(down)
        masks = inside[labels[block], np.arange(n)][:, None]
        ground, figure = rng.uniform(30, 225, (2, n, 3, 1, 1))
        # Figure and ground are told apart in at least one channel.
        close = np.abs(figure - ground).max(axis=1, keepdims=True) < 60
        figure = np.where(close, (ground + 127) % 255, figure)
        noise = rng.normal(0, 25, (n, 3, SIDE, SIDE))
        pixels[block] = np.clip(np.where(masks, figure, ground) + noise, 0, 255).astype(np.uint8)
    return Images(torch.from_numpy(pixels), torch.from_numpy(labels))


def _shapes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return masks, bool (10, n, 32, 32): the points inside the shape of each class, of unit size and centred at 0."""
    radius = np.hypot(x, y)
    reach = np.maximum(np.abs(x), np.abs(y))
    box = reach < 0.9
    rows, columns = np.floor(y / 0.36).astype(int) % 2 == 0, np.floor(x / 0.36).astype(int) % 2 == 0
    return np.stack(
        [
            radius < 1,
            (radius < 1) & (radius > 0.55),
            box,
            box & (reach > 0.5),
            (y < 0.8) & (np.abs(x) < (y + 1) / 1.8),
            box & ((np.abs(x) < 0.3) | (np.abs(y) < 0.3)),
            box & rows,
            box & columns,
            box & (rows ^ columns),
            (np.hypot(x - 0.5, y) < 0.5) | (np.hypot(x + 0.5, y) < 0.5),
        ]
    )


# --- batches ---


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of each channel over a training set, of pixels scaled to [0, 1]; (3,) each."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, images: Images) -> Normalisation:
        """Return those of `images`, summed exactly in integers, so that every machine finds the same."""
        counts = torch.stack(
            [torch.bincount(channel.reshape(-1), minlength=256) for channel in images.pixels.unbind(1)]
        )
        levels = torch.arange(256, dtype=torch.float64, device=counts.device) / 255
        share = counts.double() / counts.sum(1, keepdim=True)
        mean = share @ levels
        std = (share @ levels.square() - mean.square()).clamp_min(1e-12).sqrt()
        return cls(mean.float(), std.float())

    def to(self, device: torch.device | str) -> Normalisation:
        """Return the same on `device`."""
        return Normalisation(self.mean.to(device), self.std.to(device))

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return (n, 3, h, w) float32 of mean 0 and deviation 1 over the training set, from uint8."""
        return (pixels.float() / 255 - self.mean[:, None, None]) / self.std[:, None, None]


def augmented(images: Tensor, offsets: Tensor, flips: Tensor) -> Tensor:
    """Return images padded by 4 zeros on each side, cropped at `offsets`, and flipped where `flips`.

    Args:
        images: Shape (n, c, h, w).
        offsets: Row and column of each crop in the padded image, 0 to 8, shape (n, 2).
        flips: Which are mirrored left to right, shape (n,), bool.
    """
    n, _, height, width = images.shape
    rows = offsets[:, :1] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(n, width)
    columns = offsets[:, 1:] + torch.where(flips[:, None], width - 1 - columns, columns)
    padded = functional.pad(images, (4, 4, 4, 4))
    which = torch.arange(n, device=images.device)
    return padded.permute(0, 2, 3, 1)[which[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def drawn_augmentation(count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Draw offsets (n, 2) and flips (n,) for n images; see `augmented`."""
    return torch.from_numpy(rng.integers(0, 9, (count, 2))), torch.from_numpy(rng.integers(0, 2, count).astype(bool))


def training_batches(images: Images, settings: ResNet20Settings, seed: int, epoch: int) -> Iterator[Images]:
    """Yield the batches of an epoch, padded, cropped and flipped, on the images' device.

    Order, crops and flips are drawn on the CPU from (seed, epoch) alone, for the whole epoch at once: the same on
    every device, and the same when a run resumes in the middle of an epoch.
    """
    rng = np.random.default_rng((seed, epoch))
    n = len(images)
    device = images.pixels.device
    order = torch.from_numpy(rng.permutation(n)).to(device)
    offsets, flips = (draw.to(device) for draw in drawn_augmentation(n, rng))
    for start in range(0, n, settings.batch_size):
        part = slice(start, start + settings.batch_size)
        batch = images.take(order[part])
        if settings.augment:
            batch = Images(augmented(batch.pixels, offsets[part], flips[part]), batch.labels)
        yield batch


# --- run ---


@dataclass(frozen=True)
class ImageData(Data):
    """Images to train on and images to test on."""

    train: Images
    test: Images


class ResNet20Problem(Problem):
    """One run: batches in random order, a tenth of the training images held out for validation if asked for."""

    def __init__(
        self, settings: ResNet20Settings, data: ImageData, *, seed: int, device: torch.device, hold_out: bool
    ) -> None:
        train = data.train
        self.settings = settings
        self.splits = {"test": data.test.to(device)}
        if hold_out:
            # The split does not depend on the seed, so that settings are chosen on the same images in all runs.
            order = torch.from_numpy(np.random.default_rng(0).permutation(len(train)))
            held_out = len(train) // 10
            self.splits["valid"] = train.take(order[:held_out]).to(device)
            train = train.take(order[held_out:])
        self.train = train.to(device)
        self.normalisation = Normalisation.of(train).to(device)
        super().__init__(
            settings,
            ResNet20(settings.width).to(device),
            seed=seed,
            steps_per_epoch=math.ceil(len(train) / settings.batch_size),
            examples=len(train),
        )

    def batches(self, epoch: int) -> Iterator[Images]:
        """Yield the batches of an epoch: uint8 images, augmented."""
        return training_batches(self.train, self.settings, self.seed, epoch)

    def drawn(self, which: Tensor, rng: np.random.Generator) -> Images:
        """Return training images, cropped and flipped once if training ones are."""
        device = self.train.labels.device
        images = self.train.take(which.to(device))
        if not self.settings.augment:
            return images
        offsets, flips = (draw.to(device) for draw in drawn_augmentation(len(which), rng))
        return Images(augmented(images.pixels, offsets, flips), images.labels)

    def loss(self, batch: Images, carried: None) -> tuple[Tensor, None]:
        """Return the mean cross-entropy, in nats."""
        return functional.cross_entropy(self.model(self.normalisation(batch.pixels)), batch.labels), None

    def metrics(self, split: Split) -> dict[str, Tensor | float]:
        """Return loss and accuracy (the share of images that are classified correctly)."""
        images = self.splits[split]
        loss = correct = torch.zeros((), device=images.labels.device)
        for start in range(0, len(images), 500):
            part = images.take(slice(start, start + 500))
            logits = self.model(self.normalisation(part.pixels))
            loss = loss + functional.cross_entropy(logits, part.labels, reduction="sum")
            correct = correct + (logits.argmax(1) == part.labels).sum()
        return {"loss": loss / len(images), "accuracy": correct / len(images)}

    def baseline(self) -> Baseline:
        """Return the loss of giving every class the same probability."""
        return Baseline("ln 10", math.log(CLASSES))


class ResNet20Task(Task[ResNet20Settings, ImageData]):
    """ResNet-20 on CIFAR-10 (Figure 4, Table 1)."""

    name = "resnet20"
    summary = "ResNet-20, image classification on CIFAR-10"
    figure = "Figure 4, Table 1"
    files = f"{_TRAIN_FILES[0]} to {_TRAIN_FILES[-1]} and {_TEST_FILE} (CIFAR-10's binary version)"
    hub = "uoft-cs/cifar10"
    signs = (_TRAIN_FILES[0], f"cifar-10-batches-bin/{_TRAIN_FILES[0]}")
    optimizer = "generalized-signsgd"
    metric = "accuracy"
    higher_is_better = True

    def settings(self, preset: Preset) -> ResNet20Settings:
        """Return the paper's settings, or a network half as wide with smaller batches, for 200 steps."""
        return (
            ResNet20Settings() if preset == "paper" else ResNet20Settings(batch_size=64, epochs=20, steps=200, width=8)
        )

    def optimizer_defaults(self, optimizer: str, preset: Preset) -> dict[str, Any]:
        """Return the hyperparameters of the authors' published commands."""
        return _DEFAULTS.get(optimizer, {})

    def find_data(self, source: str | None) -> ImageData:
        """Find CIFAR-10 in its binary version or on the hub, or generate the stand-in's images."""
        if source is None:
            train, test = generate_images(10_000, seed=0), generate_images(2_000, seed=1)
            return ImageData("generated images of ten shapes", True, train, test)
        if source == "hub" or source.startswith("hub:"):
            splits = load_hub(source, self.hub)
            return ImageData(source, False, _hub_images(splits, "train"), _hub_images(splits, "test"))
        train, test = read_cifar10(source)
        return ImageData(source, False, train, test)

    def problem(
        self, settings: ResNet20Settings, data: ImageData, *, seed: int, device: torch.device, hold_out: bool
    ) -> ResNet20Problem:
        """Build the network; a tenth of the training images is held out for validation if asked for."""
        return ResNet20Problem(settings, data, seed=seed, device=device, hold_out=hold_out)
