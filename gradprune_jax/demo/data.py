"""Images to train on: the bundled ones, or those of a folder of IDX files.

IDX is the format of MNIST and Fashion-MNIST: big-endian header, then raw bytes.
"""

from __future__ import annotations

import dataclasses
import gzip
import importlib.resources
import math
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pathlib
    from importlib.resources.abc import Traversable

CLASSES = 10
IMAGE_SHAPE = (28, 28)

# The bundled file has no training part; its images come in random order, so taking
# every fifth one gives a split that needs no random numbers.
_TEST_EVERY = 5

# An IDX header starts with two zero bytes, the type (8: unsigned byte) and the axes.
_UNSIGNED_BYTE = 8


class DataError(ValueError):
    """A data file that cannot be used: which one, why, and what to do."""


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images and their classes, for training and for testing.

    Two are equal if they are the same object.

    Attributes:
      train_images: uint8 of shape (n, 28, 28, 1).
      train_labels: int32 of shape (n,), in [0, 10).
      test_images: uint8 of shape (m, 28, 28, 1).
      test_labels: int32 of shape (m,), in [0, 10).
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    def limit(self, images: int) -> Dataset:
        """Keep the first `images` for training, and a quarter as many for testing."""
        tests = max(1, images // (_TEST_EVERY - 1))
        return Dataset(
            self.train_images[:images],
            self.train_labels[:images],
            self.test_images[:tests],
            self.test_labels[:tests],
        )


def load(folder: pathlib.Path | None = None) -> Dataset:
    """Load the images of a folder, or the 10,000 bundled ones split 8,000 to 2,000.

    Args:
      folder: a folder with `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`,
        `t10k-images-idx3-ubyte` and `t10k-labels-idx1-ubyte`, each plain or `.gz`.
        None is the test part of Fashion-MNIST that comes with this package.

    Returns:
      The images and labels.

    Raises:
      DataError: if a file is missing or is not what its name promises.

    Examples:
      >>> dataset = load()
      >>> len(dataset.train_images), len(dataset.test_images)
      (8000, 2000)
    """
    if folder is not None:
        return Dataset(*_read_part(folder, "train"), *_read_part(folder, "t10k"))
    bundled = importlib.resources.files(__package__).joinpath("fashion_mnist")
    images, labels = _read_part(bundled, "t10k")
    is_test = np.arange(len(images)) % _TEST_EVERY == _TEST_EVERY - 1
    return Dataset(images[~is_test], labels[~is_test], images[is_test], labels[is_test])


def _read_part(folder: Traversable, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the images, with a channel axis, and the labels of one part of a set."""
    images_file = _find(folder, f"{part}-images-idx3-ubyte")
    labels_file = _find(folder, f"{part}-labels-idx1-ubyte")
    images = _read_idx(images_file, axes=3)
    labels = _read_idx(labels_file, axes=1)
    if images.shape[1:] != IMAGE_SHAPE or not len(images):
        count, height, width = images.shape
        raise DataError(
            f"{images_file}: has {count} images of {height}x{width} pixels; the demo "
            "needs 28x28, at least one: give a folder of Fashion-MNIST or MNIST files."
        )
    if len(images) != len(labels):
        raise DataError(
            f"{labels_file}: has {len(labels)} labels for the {len(images)} images of "
            f"{images_file}; the two files must belong together."
        )
    if labels.max() >= CLASSES:
        raise DataError(
            f"{labels_file}: label {labels.argmax()} is {labels.max()}; labels must be "
            f"0 to {CLASSES - 1}: give a set with {CLASSES} classes."
        )
    return images[..., None], labels.astype(np.int32)


def _find(folder: Traversable, name: str) -> Traversable:
    """Find the file of a name, compressed or not."""
    for candidate in (folder.joinpath(name), folder.joinpath(f"{name}.gz")):
        if candidate.is_file():
            return candidate
    raise DataError(
        f"{folder}: has neither {name} nor {name}.gz; put all four IDX files (train "
        "and t10k, images and labels) into the folder."
    )


def _read_idx(file: Traversable, axes: int) -> np.ndarray:
    """Read the uint8 array of an IDX file, if its header fits its contents."""
    content = file.read_bytes()
    if content[:2] == b"\x1f\x8b":  # by content: a `.gz` may have been unpacked
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(
                f"{file}: is a damaged gzip file ({error}); copy it again."
            ) from None
    header = struct.Struct(f">I{axes}I")
    if len(content) < header.size:
        raise DataError(
            f"{file}: has {len(content)} bytes, less than an IDX header of "
            f"{header.size}; copy it again."
        )
    magic, *shape = header.unpack_from(content)
    expected = _UNSIGNED_BYTE << 8 | axes
    if magic != expected:
        raise DataError(
            f"{file}: starts with the number {magic}, not {expected}, so it is no IDX "
            f"file of unsigned bytes with {axes} axes; check which file has this name."
        )
    size = header.size + math.prod(shape)
    if len(content) != size:
        raise DataError(
            f"{file}: has {len(content)} bytes, but its header promises {size}; "
            "copy it again."
        )
    return np.frombuffer(content, np.uint8, offset=header.size).reshape(shape)
