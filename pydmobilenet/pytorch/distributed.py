"""Several processes that train one network, as ``torchrun`` starts them; or just this one."""

from __future__ import annotations

import atexit
import os
import warnings

import numpy as np
import torch
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from ..devices import Device, parse
from ..errors import UnusableError
from ..processes import die_with, launched
from . import devices


def choose_device(name: str = "auto") -> Device:
    """Choose a device as `devices.choose` does. Each process of torchrun's on a machine takes a GPU of its own."""
    wanted = parse(name)
    if not launched() or wanted.kind in ("cpu", "mps"):
        return devices.choose(name)
    if wanted.numbers:
        raise UnusableError(f"device {name!r} is one for all processes of torchrun (allowed: cpu, gpu; nearest: gpu)")
    if wanted.kind == "auto" and not devices.gpus():
        return devices.choose("cpu")
    processes = int(os.environ["LOCAL_WORLD_SIZE"])
    # All processes have to see it, not only the last one.
    if obstacle := devices.obstacle("gpu", processes - 1):
        raise UnusableError(f"{processes} processes of torchrun on this machine: {obstacle}; nearest: --device cpu")
    return devices.choose(f"gpu:{os.environ['LOCAL_RANK']}")


class Workers:
    """The processes that train together: `size` of them, of which this has number `rank`.

    Those on GPUs exchange gradients by NCCL, those on CPUs by gloo. Numbers that are on the CPU anyway go by gloo too,
    so that no GPU is waited for.
    """

    def __init__(self, device: torch.device):
        self.device, self.rank, self.size = device, 0, 1
        if launched():
            if device.type == "cuda":
                torch.cuda.set_device(device)
            die_with(os.getppid())  # torchrun itself may be killed
            if not distributed.is_initialized():
                _join("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
            atexit.unregister(_leave)
            self.rank, self.size = distributed.get_rank(), distributed.get_world_size()

    def parallel(self, net: nn.Module) -> nn.Module:
        """The network, whose gradients become their mean over all workers in a backward pass, and whose batch
        normalisations take the statistics of the batch of all.
        """
        if self.size == 1:
            return net
        if self.device.type == "cuda":
            net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
        for module in net.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = CPUSyncBatchNorm
        places = [self.device] if self.device.type == "cuda" else None
        # The strides of a kernel with one input channel are no matter.
        warnings.filterwarnings("ignore", "Grad strides do not match")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer versions have another name for it
            return DistributedDataParallel(net, places, broadcast_buffers=False)  # they are the same anyway

    def all_reduce(self, values: np.ndarray) -> np.ndarray:
        """The sum of what all workers have handed in; all of them have to call it."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(total)
        return total.numpy()

    def close(self) -> None:
        """Wait until all workers have called it.

        Only then the process may take its leave of the others when it ends: of those that have died it would wait for
        an answer.
        """
        if launched():
            self.all_reduce(np.zeros(1))
            atexit.register(_leave)


def _join(backend: str) -> None:
    """Join the processes that torchrun has started.

    From 2.5 on, torchrun keeps its store when it starts them again, and with it the addresses of those that have died:
    on one machine, each start gets names of its own. Machines count their restarts apart, so there are none between.
    """
    store, rank, size = next(distributed.rendezvous("env://"))
    if os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]:
        store = distributed.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size)


def _leave() -> None:
    if distributed.is_initialized():  # a script may have done it
        distributed.destroy_process_group()


class CPUSyncBatchNorm(nn.BatchNorm2d):
    """``torch.nn.SyncBatchNorm``, which is for GPUs alone, for equal shares of a batch on CPUs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        statistics = self.running_mean, self.running_var
        return _SyncBatchNorm.apply(x, *statistics, self.weight, self.bias, self.momentum, self.eps)


class _SyncBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, running_mean, running_var, weight, bias, momentum, eps):
        rank, size = distributed.get_rank(), distributed.get_world_size()
        count = size * x.numel() // x.shape[1]
        own_var, own_mean = torch.var_mean(_widened(x), (0, 2, 3), correction=0)
        # Each worker's row by itself: a sum of squares over all would lose digits.
        statistics = torch.zeros(size, 2, x.shape[1], dtype=own_mean.dtype, device=x.device)
        statistics[rank, 0], statistics[rank, 1] = own_mean, own_var
        distributed.all_reduce(statistics)
        means, variances = statistics.unbind(1)
        mean = means.mean(0)
        variance = variances.mean(0) + means.var(0, correction=0)
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(variance * (count / (count - 1)), momentum)
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt())
        ctx.count = count
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx, gradient):
        x, weight, mean, inverse_std = ctx.saved_tensors
        gradient = _widened(gradient)
        normal = (_widened(x) - _per_channel(mean)) * _per_channel(inverse_std)
        own = torch.stack([(gradient * normal).sum((0, 2, 3)), gradient.sum((0, 2, 3))])
        total = own.clone()
        distributed.all_reduce(total)
        of_scale, of_shift = total / ctx.count
        scale = inverse_std if weight is None else inverse_std * weight
        of_x = (gradient - _per_channel(of_shift) - normal * _per_channel(of_scale)) * _per_channel(scale)
        return of_x.to(x.dtype), None, None, None if weight is None else own[0], own[1], None, None


def _widened(x: torch.Tensor) -> torch.Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _per_channel(values: torch.Tensor) -> torch.Tensor:
    return values.view(1, -1, 1, 1)
