"""The 1,797 handwritten digits inside scikit-learn: a data set that is always at hand, and needs no network.

They are the test set of the Optical Recognition of Handwritten Digits data (Alpaydin and Kaynak, UCI, 1998): 8x8 pixels
of 0 to 16. Here each pixel becomes 4x4 pixels of 0 to 255 in all three colours.
"""

from __future__ import annotations

import numpy as np

from ..errors import UnusableError
from .dataset import Raw, Task

TEST_IMAGES = 360  # the last ones, as in scikit-learn's own example
# Of the training images' pixels, measured.
MEAN, STD = (0.3054,) * 3, (0.3753,) * 3

TASK = Task("digits", "Digits", tuple("0123456789"), 10, MEAN, STD, mirrored=False)


def read(split: str) -> Raw:
    """The first 1,437 images for training, the last 360 for the test. Raises UnusableError without scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UnusableError(
            f"the digits are scikit-learn's, which cannot be imported ({error}): "
            "pip install '.[digits]' in the checkout"
        ) from None
    digits = load_digits()
    levels = np.rint(digits.images * (255 / 16)).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    images = np.repeat(levels[:, None], 3, axis=1)
    part = slice(None, -TEST_IMAGES) if split == "train" else slice(-TEST_IMAGES, None)
    return Raw(images[part], digits.target[part].astype(np.int64), official=True, source="scikit-learn")
