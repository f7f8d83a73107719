"""Training with PyTorch, alone or as one of torchrun's processes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, Union

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .. import machine
from ..catalog import parse_name
from ..checkpoints import Checkpoint, weights
from ..checkpoints.weights import checkpoint_names
from ..data import Dataset, Task
from ..errors import InvalidValueError
from ..folding import fold
from ..metrics import Score, evaluate
from ..network import widths
from ..processes import processors
from ..training.config import Config
from ..training.loader import Loader
from ..training.trainer import (
    LOSS_SCALE,
    MOMENTS,
    STEP,
    body,
    check_split,
    check_state,
    head_predictor,
    rate_multiplier,
)
from . import ema, inference
from .devices import engine_errors
from .distillation import Teacher
from .distributed import Workers
from .ema import MovingAverage
from .graph import GraphedPass
from .loader import DeviceLoader, fits
from .network import Network, build, get_arrays, initialize, overwrite, set_arrays
from .pyramid import use_triton
from .qat import FakeQuantised

Array = Union[np.ndarray, torch.Tensor]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def make(
    config: Config,
    task: Task,
    device: torch.device,
    compiled: bool = False,
    teacher: Checkpoint | None = None,
    pyramid: str = "conv2d",
) -> PyTorchTrainer:
    """Build a trainer with parameters drawn from the seed, and with a `teacher` for distillation.

    Raises InvalidValueError if the workers cannot share a batch evenly, UnusableError for Triton's `pyramid` (see
    `use_triton`).
    """
    if compiled and config.from_features:
        raise InvalidValueError("a last layer alone learns from features, without the network: leave out --compile")
    if config.qat and pyramid == "triton":
        raise InvalidValueError("qat computes an int8 file's convolutions, without pyramids: leave out --pyramid")
    if device.type == "cpu":
        warn_of_slow_type(config.dtype)
        torch.set_num_threads(processors())
        machine.keep_freed_memory()
    elif device.type == "cuda":
        warn_of_emulated_type(config.dtype, device)
    net = build(parse_name(config.model), task.outputs, widths(config.dataset))
    initialize(net, config.initialiser, config.seed)
    with engine_errors():
        if pyramid == "triton":
            use_triton(net.get_classifier() if config.frozen else net, device, DTYPES.get(config.dtype, torch.float32))
        trainer = PyTorchTrainer(net, config, device, Workers(device), compiled)
        trainer.teacher = Teacher(teacher, task, config, device) if teacher else None
    return trainer


def warn_of_slow_type(dtype: str) -> None:
    """Warn of half precision without AVX-512: a ResNet was 20 times slower."""
    instructions = machine.instruction_set(engine="pytorch")
    if dtype != "float32" and instructions and not instructions.startswith("AVX512"):
        warnings.warn(f"dtype {dtype!r} is slow on this processor ({instructions}); use float32", stacklevel=2)


def warn_of_emulated_type(dtype: str, device: torch.device) -> None:
    """Warn of bfloat16 on NVIDIA's GPUs before Ampere, which have no instructions for it."""
    capability = torch.cuda.get_device_capability(device)
    if dtype == "bfloat16" and torch.version.cuda and capability < (8, 0):
        which = "compute capability {}.{}".format(*capability)
        warnings.warn(f"dtype 'bfloat16' is emulated on this GPU ({which}); use float32 or float16", stacklevel=2)


class PyTorchTrainer:
    """PyTorch's `Trainer`: a network on one device, the same on all `workers`.

    The parameters are float32; another `dtype` is for ``torch.autocast``.
    """

    name = "pytorch"

    def __init__(self, net: Network, config: Config, device: torch.device, workers: Workers, compiled: bool = False):
        check_split(config, 1, workers.size)
        self.config, self._device, self.workers = config, device, workers
        # A step of pyd-concat-56-0.75 as a CUDA graph on an H100, bfloat16: 10.8 ms, in NCHW 23.8 (docs/speed.md).
        self.net = net.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]  # untyped
        overwrite(self.net, training=True)
        names = checkpoint_names(self.net.state_dict())
        for name, value in self.net.named_parameters():
            if rate_multiplier(names[name], self.net.description, config) == 0:
                value.requires_grad_(False)
        model = FakeQuantised(self.net) if config.qat else self.net.get_classifier() if config.frozen else self.net
        self.model: Any = workers.parallel(model)
        if compiled:
            self.model = torch.compile(self.model, mode="reduce-overhead")
        self.trained = {names[name]: value for name, value in self.net.named_parameters() if value.requires_grad}
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.trained.items():
            decay = config.weight_decay if config.decay_norm_and_bias or name.endswith(".weight") else 0.0
            rate = rate_multiplier(name, self.net.description, config)
            groups.setdefault((decay, rate), []).append(parameter)
        parameters = [{"params": group, "weight_decay": decay, "rate": rate} for (decay, rate), group in groups.items()]
        # With a GradScaler, PyTorch 2.13's fused update on a CPU wrote nan into some parameters. False would disable
        # the foreach implementation as well.
        fused = None if device.type == "mps" or config.dtype == "float16" else True
        rate, momentum = config.learning_rate, config.momentum
        self.optimizer: torch.optim.Optimizer
        if config.optimizer == "adamw":
            self.optimizer = torch.optim.AdamW(parameters, rate, betas=(0.9, 0.999), eps=1e-8, fused=fused)
        else:
            self.optimizer = torch.optim.SGD(parameters, rate, momentum, nesterov=momentum > 0, fused=fused)
        # The next run of a compiled step overwrites its gradients' memory (pytorch#169545): accumulate elsewhere.
        self.keep_gradients = compiled and config.accumulation_steps > 1
        if self.keep_gradients:
            for parameter in self.trained.values():
                parameter.grad = torch.zeros_like(parameter)
        self.autocast: AbstractContextManager = nullcontext()
        if config.dtype != "float32":
            self.autocast = torch.autocast(device.type, DTYPES[config.dtype], cache_enabled=False)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.dtype == "float16")
        self.micro_step = 0  # since the last update
        self.average = MovingAverage(self._changing(names), config.ema) if config.ema else None
        self.batch: list[torch.Tensor] = []  # images and targets, always in the same memory
        self.graphs: GraphedPass | None = None
        if device.type == "cuda" and not compiled:
            self._use_graphs()
        self.teacher: Teacher | None = None

    def _use_graphs(self) -> None:
        """Run passes as CUDA graphs, or say why not."""
        lack = "float16" if self.scaler.is_enabled() else "several processes" if self.world_size > 1 else ""
        if lack:
            if self.rank == 0:
                warnings.warn(f"no CUDA graph with {lack}: the host launches every kernel", stacklevel=4)
            return
        for group in self.optimizer.param_groups:
            group.update(lr=torch.zeros((), device=self._device), capturable=True)
        self.optimizer._warned_capturable_if_run_uncaptured = True  # type: ignore[attr-defined]  # the first ones are
        self.graphs = GraphedPass(self._device)

    def _changing(self, names: Mapping[str, str]) -> dict[str, torch.Tensor]:
        """Return all that training changes, by checkpoint name: parameters, and batch normalisation's statistics."""
        statistics = {names[name]: value for name, value in self.net.named_buffers() if name in names}
        return {**self.trained, **({} if self.config.frozen else statistics)}

    @property
    def rank(self) -> int:
        return self.workers.rank

    @property
    def world_size(self) -> int:
        return self.workers.size

    @property
    def device(self) -> str:
        return str(self._device)

    def loader(self, dataset: Dataset, batches: int) -> Loader:
        """Return a loader of batches, which makes them on a GPU if the images fit."""
        arguments = dataset, self.config, batches, self.rank, self.world_size
        on_host = self._device.type != "cuda" or self.config.frozen or self.config.augmented_on_host
        if not on_host and fits(dataset, self._device):
            with engine_errors():
                return DeviceLoader(*arguments, device=self._device)
        return Loader(*arguments)

    def train_step(self, images: Array, targets: Array, learning_rate: float) -> Callable[[], Score]:
        """Run a forward and a backward pass, and an update if it is due.

        Return a function that waits for this step alone and gives the score of the batch of all workers.
        """
        first = self.micro_step == 0
        self.micro_step += 1
        due = self.micro_step == self.config.accumulation_steps
        if self.config.frozen and images.ndim == 4:
            images = self.features(np.asarray(images))
        with engine_errors(), inference.full_precision(self._device, benchmark=True):
            self._set_batch(images, targets)
            if due:
                self._set_learning_rate(learning_rate)
                self.micro_step = 0
            report = self.graphs(self._pass, first, due) if self.graphs else self._pass(first, due)
            wait = self._copy_to_host(report)

        def read() -> Score:
            with engine_errors():
                loss, wrong = self.all_reduce(wait())
            return Score(float(loss), round(wrong), self.config.batch_size)

        return read

    def _set_batch(self, *arrays: Array) -> None:
        """Copy a batch into the memory that a pass reads, to a GPU asynchronously. It may be overwritten at once."""
        if [tuple(array.shape) for array in arrays] != [tuple(tensor.shape) for tensor in self.batch]:
            self.batch = [self._empty(array.shape) for array in arrays]
            self._forget_graphs()
        cuda = self._device.type == "cuda"
        for tensor, array in zip(self.batch, arrays):
            if isinstance(array, np.ndarray):
                array = torch.from_numpy(np.require(array, requirements=["C", "W"]))
                array = (array.pin_memory() if cuda else array).to(self._device, non_blocking=cuda)
            tensor.copy_(array)

    def _empty(self, shape: Sequence[int]) -> torch.Tensor:
        layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        return torch.empty(tuple(shape), device=self._device, memory_format=layout)

    def _set_learning_rate(self, learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            rate = learning_rate * group["rate"]
            if isinstance(group["lr"], torch.Tensor):  # where a graph reads it
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _pass(self, first: bool, due: bool) -> torch.Tensor:
        """Train on the batch; return the sum of its losses and its errors. A graph may record it: nothing waits."""
        x, y = self.batch
        if first:
            self.optimizer.zero_grad(set_to_none=not self.keep_gradients)
        # Workers exchange gradients in the last pass before an update.
        with nullcontext() if due or self.world_size == 1 else self.model.no_sync():
            with self.autocast:
                logits = self.model(x)
            logits = logits.float()
            losses = F.cross_entropy(logits, y, reduction="none")
            if self.teacher:
                losses = self.teacher.losses(x, logits, y, losses)
            # The mean over all images of an update. DistributedDataParallel averages over the workers.
            scale = self.world_size / (self.config.batch_size * self.config.accumulation_steps)
            self.scaler.scale(losses.sum() * scale).backward()
        if due:
            self._update()
        wrong = logits.argmax(1) != y.argmax(1)
        return torch.stack([losses.detach().sum(), wrong.sum()])

    def _update(self) -> None:
        """Update the parameters by their gradients. A graph may record it."""
        if self.config.clip_gradient:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.trained.values(), self.config.clip_gradient)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average:
            self.average.update()

    def _copy_to_host(self, report: torch.Tensor) -> Callable[[], np.ndarray]:
        """Queue the copy of a report behind its own step, and return a function that waits for it."""
        if self._device.type != "cuda":
            return lambda: report.cpu().numpy()
        copy, done = report.to("cpu", non_blocking=True), torch.cuda.Event()  # in pinned memory
        done.record(torch.cuda.current_stream(self._device))

        def wait() -> np.ndarray:
            done.synchronize()
            return copy.numpy()

        return wait

    def _forget_graphs(self) -> None:
        if self.graphs:
            self.graphs.reset()

    def sync_batch_norm(self) -> None:
        """Do nothing: all workers have the whole batch's statistics."""

    def features(self, images: np.ndarray) -> np.ndarray:
        """Return the pooled features (n, C) of images (n, 3, H, W) in float32, with a frozen body."""
        return self._body(images)

    @cached_property
    def _body(self) -> inference.Predict:
        with engine_errors():
            return inference.predictor(*fold(*body(self.net.description, get_arrays(self.net))), self._device)

    def averaged(self) -> dict[str, np.ndarray]:
        """Return the moving average of the parameters, and those that do not change."""
        return {**get_arrays(self.net), **(self.average.arrays() if self.average else {})}

    def evaluate(self, dataset: Dataset, averaged: bool = False) -> Score:
        """Return the score on a data set, or on its features, in float32. Each worker evaluates one shard."""
        network, arrays = self.net.description, self.averaged() if averaged else get_arrays(self.net)
        if dataset.images.ndim == 2:
            predict = head_predictor(network, arrays)
        else:
            with engine_errors():
                predict = inference.predictor(*fold(network, arrays), self._device)
        score = evaluate(predict, dataset, inference.batch_size(self._device), self.rank, self.world_size)
        loss, wrong = self.all_reduce(np.array(score[:2]))
        return Score(float(loss), round(wrong), len(dataset))

    def all_reduce(self, values: np.ndarray) -> np.ndarray:
        """Sum over all workers."""
        with engine_errors():
            return self.workers.all_reduce(values)

    def close(self) -> None:
        """Wait for all workers at the end of training."""
        with engine_errors():
            self.workers.close()

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Return the parameters and the momentum, by structural name."""
        momentum = {}
        for name, parameter in self.trained.items():
            state = self.optimizer.state[parameter] if self.optimizer.state else {}
            for key, prefix in MOMENTS[self.config.optimizer].items():
                if state.get(key) is not None:
                    momentum[prefix + name] = state[key].detach().cpu().numpy().copy()
            if "step" in state:  # the same for all
                momentum[STEP] = np.array(state["step"].item(), np.float64)
        if self.scaler.is_enabled():
            state = self.scaler.state_dict()
            momentum[LOSS_SCALE] = np.array([state["scale"], state["_growth_tracker"]], np.float64)
        if self.average:
            momentum.update(self.average.state())
        return get_arrays(self.net), momentum

    def load_state(self, parameters: Mapping[str, np.ndarray], momentum: Mapping[str, np.ndarray]) -> None:
        """Restore a `state`. Raises BadFileError for another network's."""
        momentum = dict(momentum)
        scale = momentum.pop(LOSS_SCALE, None)
        if self.average:
            average = {name: momentum.pop(name) for name in [*momentum] if name.startswith(ema.PREFIX)}
            self.average.load_state(average)
        check_state(parameters, momentum, get_arrays(self.net), self.trained, self.config.optimizer)
        step = momentum.pop(STEP, None)
        set_arrays(self.net, parameters)
        self.optimizer.state.clear()
        self._forget_graphs()
        self.micro_step = 0
        for name, parameter in self.trained.items() if momentum else ():
            state = self.optimizer.state[parameter]
            for key, prefix in MOMENTS[self.config.optimizer].items():
                buffer = torch.empty_like(parameter, requires_grad=False)  # the same memory format
                state[key] = buffer.copy_(torch.tensor(momentum[prefix + name]))
            if step is not None:  # where PyTorch has it
                device = self._device if self.optimizer.defaults["fused"] else "cpu"
                state["step"] = torch.tensor(float(step), dtype=torch.float32, device=device)
        if scale is not None and self.scaler.is_enabled():
            values = {"scale": float(scale[0]), "_growth_tracker": int(scale[1])}
            self.scaler.load_state_dict({**self.scaler.state_dict(), **values})

    def load_weights(self, path: Path, head: weights.Head = "required") -> bool:
        """Load the parameters of a file. Return whether the dense layer was kept; `head` says if it may be."""
        arrays = weights.load(path, self.net.description, head)
        set_arrays(self.net, arrays)
        return len(arrays) < len(self.net.description.parameters)
