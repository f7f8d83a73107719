"""Training with PyTorch, alone or as one of torchrun's processes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .. import machine
from ..catalog import parse_name
from ..checkpoints import Checkpoint, weights
from ..checkpoints.weights import checkpoint_names
from ..data import Dataset, Task
from ..folding import fold
from ..metrics import Score, evaluate
from ..network import widths
from ..processes import processors
from ..training.config import Config
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
from . import inference
from .devices import engine_errors
from .distillation import Teacher
from .distributed import Workers
from .network import Network, build, get_arrays, initialize, overwrite, set_arrays

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def make(
    config: Config, task: Task, device: torch.device, compiled: bool = False, teacher: Checkpoint | None = None
) -> PyTorchTrainer:
    """Build a trainer with parameters drawn from the seed, and with a `teacher` for distillation.

    Raises InvalidValueError if the workers cannot share a batch evenly.
    """
    if device.type == "cpu":
        warn_of_slow_type(config.dtype)
        torch.set_num_threads(processors())
        machine.keep_freed_memory()
    net = build(parse_name(config.model), task.outputs, widths(config.dataset))
    initialize(net, config.initialiser, config.seed)
    with engine_errors():
        trainer = PyTorchTrainer(net, config, device, Workers(device), compiled)
        trainer.teacher = Teacher(teacher, task, config, device) if teacher else None
    return trainer


def warn_of_slow_type(dtype: str) -> None:
    """Warn of half precision without AVX-512: a ResNet was 20 times slower."""
    instructions = machine.instruction_set(engine="pytorch")
    if dtype != "float32" and instructions and not instructions.startswith("AVX512"):
        warnings.warn(f"dtype {dtype!r} is slow on this processor ({instructions}); use float32", stacklevel=2)


class PyTorchTrainer:
    """PyTorch's `Trainer`: a network on one device, the same on all `workers`.

    The parameters are float32; another `dtype` is for ``torch.autocast``.
    """

    name = "pytorch"

    def __init__(self, net: Network, config: Config, device: torch.device, workers: Workers, compiled: bool = False):
        check_split(config, 1, workers.size)
        self.config, self._device, self.workers = config, device, workers
        self.net = net.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]  # untyped
        overwrite(self.net, training=True)
        names = checkpoint_names(self.net.state_dict())
        for name, value in self.net.named_parameters():
            if rate_multiplier(names[name], self.net.description, config) == 0:
                value.requires_grad_(False)
        self.model: Any = workers.parallel(self.net.get_classifier() if config.frozen else self.net)
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
            self.autocast = torch.autocast(device.type, DTYPES[config.dtype])
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.dtype == "float16")
        self.micro_step = 0  # since the last update
        self.teacher: Teacher | None = None

    @property
    def rank(self) -> int:
        return self.workers.rank

    @property
    def world_size(self) -> int:
        return self.workers.size

    @property
    def device(self) -> str:
        return str(self._device)

    def train_step(self, images: np.ndarray, targets: np.ndarray, learning_rate: float) -> Callable[[], Score]:
        """Run a forward and a backward pass, and an update if it is due.

        Return a function that waits for the device and gives the score of the batch of all workers.
        """
        self.micro_step += 1
        due = self.micro_step == self.config.accumulation_steps
        if self.config.frozen and images.ndim == 4:
            images = self.features(images)
        with engine_errors(), inference.full_precision(self._device):
            x, y = self._copied(images), self._copied(targets)
            if x.ndim == 4:
                x = x.contiguous(memory_format=torch.channels_last)
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
            wrong = logits.argmax(1) != y.argmax(1)
            report = torch.stack([losses.detach().sum(), wrong.sum()])
            if due:
                self._update(learning_rate)

        def read() -> Score:
            with engine_errors():
                loss, wrong = self.all_reduce(report.cpu().numpy())
            return Score(float(loss), round(wrong), self.config.batch_size)

        return read

    def _copied(self, array: np.ndarray) -> torch.Tensor:
        """Copy an array to the device, to a GPU asynchronously. The array may be overwritten at once."""
        if self._device.type != "cuda":
            return torch.tensor(array, device=self._device)
        return torch.from_numpy(array).pin_memory().to(self._device, non_blocking=True)

    def _update(self, learning_rate: float) -> None:
        if self.config.clip_gradient:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.trained.values(), self.config.clip_gradient)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["rate"]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=not self.keep_gradients)
        self.micro_step = 0

    def sync_batch_norm(self) -> None:
        """Do nothing: all workers have the whole batch's statistics."""

    def features(self, images: np.ndarray) -> np.ndarray:
        """Return the pooled features (n, C) of images (n, 3, H, W) in float32, with a frozen body."""
        return self._body(images)

    @cached_property
    def _body(self) -> inference.Predict:
        with engine_errors():
            return inference.predictor(*fold(*body(self.net.description, get_arrays(self.net))), self._device)

    def evaluate(self, dataset: Dataset) -> Score:
        """Return the score on a data set, or on its features, in float32. Each worker evaluates one shard."""
        network, arrays = self.net.description, get_arrays(self.net)
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
        return get_arrays(self.net), momentum

    def load_state(self, parameters: Mapping[str, np.ndarray], momentum: Mapping[str, np.ndarray]) -> None:
        """Restore a `state`. Raises BadFileError for another network's."""
        momentum = dict(momentum)
        scale = momentum.pop(LOSS_SCALE, None)
        check_state(parameters, momentum, get_arrays(self.net), self.trained, self.config.optimizer)
        step = momentum.pop(STEP, None)
        set_arrays(self.net, parameters)
        self.optimizer.state.clear()
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
