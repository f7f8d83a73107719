"""The batches of an epoch made on a GPU, from images that stay there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..data import Dataset
from ..data.augmentation import PAD, draw
from ..data.dataset import mapped_file, scale_and_shift
from ..training.loader import Loader, make_targets


def fits(dataset: Dataset, device: torch.device) -> bool:
    """Return whether a GPU can hold the images: in a sixteenth of its free memory, as several runs may share it.

    Images on the disk stay there.
    """
    if mapped_file(dataset.images):
        return False
    images, channels, height, width = dataset.images.shape
    size = images * channels * (height + 2 * PAD) * (width + 2 * PAD)
    return size <= torch.cuda.mem_get_info(device)[0] // 16


class DeviceLoader(Loader):
    """A `Loader` that yields the same bits as tensors on its `device`, in little of the host's time.

    It copies the images once, in uint8, and the plan of the augmentation once an epoch. It has no TrivialAugment.
    """

    def __init__(self, *arguments: Any, device: torch.device):
        super().__init__(*arguments)
        self.device, self.mix, self.paste = device, mix, paste
        task = self.dataset.task
        images = self._tensor(self.dataset.images)
        if self.config.augment:
            images = F.pad(images, [PAD] * 4)
        self.windows = images.unfold(2, task.image_size, 1).unfold(3, task.image_size, 1)  # a view, without a copy
        self.scale, self.shift = map(self._tensor, scale_and_shift(task))
        targets = make_targets(np.arange(task.outputs), task.outputs, self.config.label_smoothing)
        self.targets = self._tensor(targets if self.weights is None else targets * self.weights[:, None])  # by label
        self.labels = self._tensor(self.dataset.labels)

    def _shards(self, worker: int, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield a worker's shards before mixup."""
        config, size = self.config, self.config.batch_size
        plan = draw(len(self.dataset), config.seed, epoch, config.augmentation)
        drawn = plan.order, plan.offsets, plan.flips, *([] if plan.centres is None else [plan.centres])
        on_device = [self._tensor(array) for array in drawn]
        for number in range(start, self.batches):
            shard = slice(number * size + worker, (number + 1) * size, self.workers)
            numbers, offsets, flips, *centres = (tensor[shard] for tensor in on_device)
            if config.augment:
                pixels = self.windows[numbers, :, offsets[:, 0], offsets[:, 1]]
                if self.dataset.task.mirrored:
                    pixels = torch.where(flips[:, None, None, None], pixels.flip(3), pixels)
            else:
                pixels = self.windows[numbers, :, 0, 0]
            images = pixels.float().mul_(self.scale).sub_(self.shift)
            if config.augment and centres:
                cut_out(images, centres[0], plan.side)
            yield images, self.targets[self.labels[numbers]]

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.tensor(array, device=self.device)


def mix(batch: Tensor, lam: float, others: Tensor | None = None) -> Tensor:
    """Mix as `training.loader.mix` does; each operation rounds to float32, as there."""
    factor = np.float32(lam)
    return float(factor) * batch + float(1 - factor) * (batch if others is None else others).flip(0)


def paste(images: Tensor, box: tuple[slice, slice], others: Tensor | None = None) -> Tensor:
    """Replace a box as `training.loader.paste` does."""
    pasted = images.clone()
    pasted[:, :, box[0], box[1]] = (images if others is None else others)[:, :, box[0], box[1]].flip(0)
    return pasted


def cut_out(images: Tensor, centres: Tensor, side: int) -> None:
    """Set squares to 0 as `data.augmentation.cut_out` does."""
    inside = []
    for length, centre in zip(images.shape[2:], centres.T):
        distance = torch.arange(length, device=images.device) - (centre[:, None] * length).long() + side // 2
        inside.append((distance >= 0) & (distance < side))
    rows, columns = inside
    images.masked_fill_(rows[:, None, :, None] & columns[:, None, None, :], 0)
