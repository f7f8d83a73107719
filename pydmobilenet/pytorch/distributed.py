"""Training by one process, or by ``torchrun``'s."""

from __future__ import annotations

import atexit
import os
import warnings

import numpy as np
import torch
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from ..processes import die_with, launched


class Workers:
    """The `size` processes of one training, and the `rank` of this one.

    GPUs exchange gradients by NCCL, CPUs by gloo. Numbers on the CPU go by gloo: no GPU waits for them.
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
        """Wrap a network: gradients are averaged over all workers, and batch normalisation sees the whole batch."""
        if self.size == 1:
            return net
        if self.device.type == "cuda":
            net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
        for module in net.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = CPUSyncBatchNorm
        device_ids = [self.device] if self.device.type == "cuda" else None
        # Strides do not matter for a kernel with one input channel.
        warnings.filterwarnings("ignore", "Grad strides do not match")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer versions rename it
            return DistributedDataParallel(net, device_ids, broadcast_buffers=False)  # they are the same

    def all_reduce(self, values: np.ndarray) -> np.ndarray:
        """Sum over all workers. All have to call it."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(total)
        return total.numpy()

    def close(self) -> None:
        """Wait for all workers. Destroy the process group only after that: with a dead peer it blocks."""
        if launched():
            self.all_reduce(np.zeros(1))
            atexit.register(_leave)


def _join(backend: str) -> None:
    """Join torchrun's processes.

    From 2.5 on, torchrun keeps its store over a restart, with the addresses of dead processes: on one machine, each
    start uses its own prefix. Machines count restarts separately, so several share none.
    """
    store, rank, size = next(distributed.rendezvous("env://"))
    if os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]:
        store = distributed.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size)


def _leave() -> None:
    if distributed.is_initialized():  # a script may have destroyed it
        distributed.destroy_process_group()


class CPUSyncBatchNorm(nn.BatchNorm2d):
    """``torch.nn.SyncBatchNorm`` for CPUs and equal shards of a batch; PyTorch's is for GPUs."""

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
        local_var, local_mean = torch.var_mean(_widened(x), (0, 2, 3), correction=0)
        # One row per worker: a sum of squares over all would lose digits.
        statistics = torch.zeros(size, 2, x.shape[1], dtype=local_mean.dtype, device=x.device)
        statistics[rank, 0], statistics[rank, 1] = local_mean, local_var
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
        local = torch.stack([(gradient * normal).sum((0, 2, 3)), gradient.sum((0, 2, 3))])
        total = local.clone()
        distributed.all_reduce(total)
        of_scale, of_shift = total / ctx.count
        scale = inverse_std if weight is None else inverse_std * weight
        of_x = (gradient - _per_channel(of_shift) - normal * _per_channel(of_scale)) * _per_channel(scale)
        return of_x.to(x.dtype), None, None, None if weight is None else local[0], local[1], None, None


def _widened(x: torch.Tensor) -> torch.Tensor:
    """Convert to float32 or wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _per_channel(values: torch.Tensor) -> torch.Tensor:
    return values.view(1, -1, 1, 1)
