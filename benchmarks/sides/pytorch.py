"""Training by PyTorch: as usually written, and by `train.py`'s loop."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn
from torch.nn import functional as F

from pydmobilenet.pytorch import get_model, trainer
from pydmobilenet.pytorch.pyramid import DepthwiseConv2d

from . import BATCH, LEARNING_RATE, MEAN, MOMENTUM, STD, WEIGHT_DECAY, loop, pixels


class Photographs(torch.utils.data.Dataset):
    """Random images with torchvision's RandomCrop(32, padding=4), RandomHorizontalFlip, ToTensor and Normalize, one at
    a time, without torchvision: it must match the build of PyTorch.
    """

    def __init__(self):
        images, self.labels = pixels()
        self.images = [Image.fromarray(image.transpose(1, 2, 0)) for image in images]
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        image = ImageOps.expand(self.images[number], 4)
        top, left = torch.randint(0, 9, (2,)).tolist()
        image = image.crop((left, top, left + 32, top + 32))
        if torch.rand(1) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        return tensor.sub_(self.mean).div_(self.std), int(self.labels[number])


def usual(net: nn.Module) -> nn.Module:
    """Replace our depthwise convolutions by PyTorch's own, with the same parameters."""
    for name, part in net.named_children():
        usual(part)
        if isinstance(part, DepthwiseConv2d):
            options = {"padding": part.padding, "groups": part.groups, "bias": False}
            own = nn.Conv2d(part.in_channels, part.out_channels, part.kernel_size, part.stride, **options)
            own.load_state_dict(part.state_dict())
            setattr(net, name, own)
    return net.train(net.training)


def eager(prefix: str, device: str = "cpu", dtype: torch.dtype | None = None) -> Iterator[None]:
    """Train by PyTorch's own convolutions, eager, channels last, float32 or autocast, with two workers."""
    net = usual(get_model(prefix.rpartition("/")[2])).train().to(device, memory_format=torch.channels_last)
    options = {"momentum": MOMENTUM, "nesterov": True, "weight_decay": WEIGHT_DECAY}
    optimizer = torch.optim.SGD(net.parameters(), LEARNING_RATE, **options)
    on_gpu = device != "cpu"
    loader = torch.utils.data.DataLoader(
        Photographs(), BATCH, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True, pin_memory=on_gpu
    )
    right = torch.zeros((), device=device)
    while True:
        for images, labels in loader:
            images = images.to(device, memory_format=torch.channels_last, non_blocking=on_gpu)
            labels = labels.to(device, non_blocking=on_gpu)
            with torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None):
                logits = net(images)
                loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            right += (logits.argmax(1) == labels).sum()
            yield


def ours(prefix: str, dtype: str, device: str = "cpu", compiled: bool = False) -> Iterator[None]:
    """Run `train.py`'s loop."""
    make = partial(trainer.make, device=torch.device(device), compiled=compiled)
    return loop(make, prefix.rpartition("/")[2], dtype)
