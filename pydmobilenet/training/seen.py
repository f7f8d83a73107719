"""The images that weights have seen: a run is not tested on those of its initial weights or its teacher."""

from __future__ import annotations

import warnings
from dataclasses import replace

from ..checkpoints import Checkpoint, runs
from ..data import Splits, is_own
from ..errors import InvalidValueError


def known(checkpoint: Checkpoint) -> Checkpoint:
    """Clear the doubt of images that a checkpoint does not record. Only folders and arrays are split by us: of other
    data sets, test images are unseen.
    """
    unseen = checkpoint.recorded and checkpoint.seen == runs.UNKNOWN and not is_own(checkpoint.dataset)
    return replace(checkpoint, seen="") if unseen else checkpoint


def check_unseen(splits: Splits, init: Checkpoint) -> None:
    """Raise InvalidValueError if the weights to start from have seen test images; warn if that is unknown."""
    if splits.test is None or not splits.test.hashes:
        return
    seen = set(init.seen.split())
    known = sum(image in seen for image in splits.test.hashes)
    if known:
        raise InvalidValueError(
            f"{init.run} was trained on {known:,} of the {len(splits.test):,} test images, or chosen by them: "
            "pass other weights or test images"
        )
    if why := init.cannot_tell(splits.test):
        warnings.warn(f"{init.locate()} {why}: it may have seen test images", stacklevel=3)
