"""1,797 handwritten digits, which come with the package: a data set that is always at hand, and needs no network.

They are the test set of the Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, UCI Machine Learning
Repository, 1998, doi 10.24432/C50P49, CC BY 4.0), in the order in which scikit-learn has them: 8x8 pixels of 0 to 16.
Here each pixel becomes 4x4 pixels of 0 to 255 in all three colours.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .dataset import Raw, Task

FILE = Path(__file__).with_name("digits.npz")
TEST_IMAGES = 360  # the last ones, as in scikit-learn's own example
# Of the training images' pixels, measured.
MEAN, STD = (0.3054,) * 3, (0.3753,) * 3

TASK = Task("digits", "Digits", tuple("0123456789"), 10, MEAN, STD, mirrored=False)


def read(split: str) -> Raw:
    """The first 1,437 images for training, the last 360 for the test."""
    with np.load(FILE, allow_pickle=False) as arrays:
        digits, labels = arrays["images"], arrays["labels"]
    levels = np.rint(digits * (255 / 16)).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    images = np.repeat(levels[:, None], 3, axis=1)
    part = slice(None, -TEST_IMAGES) if split == "train" else slice(-TEST_IMAGES, None)
    return Raw(images[part], labels[part].astype(np.int64), official=True, source="the package")
