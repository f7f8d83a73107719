"""Training with Gluon: the trainer on one or several devices, and its optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
from mxnet import gluon, nd
from mxnet.contrib import amp
from mxnet.gluon.block import HybridBlock

from ..checkpoints.weights import Head
from ..data import Dataset, Task
from ..errors import UnusableError
from ..metrics import Score, evaluate
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
from .inference import batch_size, build_fused, fuse, predictor
from .network import build_for, get_arrays, load_weights
from .pyramid import Step, make_step

SCALER_FIELDS = ("_loss_scale", "_next_loss_scale", "_unskipped")
INITIALISERS = {"msra": mx.init.MSRAPrelu, "xavier": mx.init.Xavier}


def make(config: Config, task: Task, contexts: Sequence[mx.Context]) -> GluonTrainer:
    """Build a trainer with fresh parameters. Raises InvalidValueError and UnusableError."""
    if config.dtype == "float16":
        if any(context.device_type != "gpu" for context in contexts):
            raise UnusableError("dtype 'float16' needs a GPU (allowed on a CPU: float32)")
        amp.init()  # before the network is made
    net = build_for(config.model, config.dataset, task.outputs)
    initialize(net, config, contexts)
    return GluonTrainer(net, config, contexts)


def initialize(net: HybridBlock, config: Config, contexts: Sequence[mx.Context]) -> None:
    """Draw the parameters from the config's seed, the same on every device."""
    mx.random.seed(config.seed)
    net.initialize(INITIALISERS[config.initialiser](), ctx=list(contexts))


class NesterovSGD(mx.optimizer.Optimizer):
    """SGD with Nesterov's momentum, as in PyTorch and in MXNet up to 1.4: m = momentum m + g; w -= lr (g + momentum m).

    g is the rescaled gradient with weight decay; the state of a weight is [m], [] without momentum. MXNet's own ``nag``
    has had the learning rate inside m since 1.5: a drop takes effect later, and it decays the weight just updated.
    """

    def __init__(self, learning_rate: float, momentum: float, wd: float):
        super().__init__(learning_rate=learning_rate, wd=wd)
        self.momentum = momentum

    def create_state(self, index: int, weight: nd.NDArray) -> list[nd.NDArray]:
        return [nd.zeros_like(weight)] if self.momentum else []

    def update(self, index: int, weight: nd.NDArray, grad: nd.NDArray, state: list[nd.NDArray]) -> None:
        """Update the weight and the state in place."""
        lr = self._get_lr(index)
        decayed = {"wd": self._get_wd(index), "rescale_grad": self.rescale_grad}
        for m in state:
            # m -= -1 g. The operation's result, w + m, is not used.
            nd.sgd_mom_update(weight, grad, m, lr=-1.0, momentum=self.momentum, **decayed)
        nd.sgd_update(weight, grad, lr=lr, **decayed, out=weight)
        for m in state:
            nd.sgd_update(weight, m, lr=lr * self.momentum, wd=0.0, out=weight)


class AdamW(mx.optimizer.Optimizer):
    """AdamW as in PyTorch: Adam, and weights that shrink by lr wd (Loshchilov and Hutter, 2017, arXiv 1711.05101).

    The state of a weight is [m, v, number of updates]. MXNet's operation does not correct the bias of m and v: here its
    learning rate and epsilon do.
    """

    betas, epsilon = (0.9, 0.999), 1e-8

    def create_state(self, index: int, weight: nd.NDArray) -> list[Any]:
        return [nd.zeros_like(weight), nd.zeros_like(weight), 0]

    def update(self, index: int, weight: nd.NDArray, grad: nd.NDArray, state: list[Any]) -> None:
        """Update the weight and the state in place."""
        state[2] += 1
        m, v, step = state
        lr, (beta1, beta2) = self._get_lr(index), self.betas
        root = math.sqrt(1 - beta2**step)
        weight *= 1 - lr * self._get_wd(index)
        corrected = {"lr": lr * root / (1 - beta1**step), "epsilon": self.epsilon * root}
        others = {"beta1": beta1, "beta2": beta2, "wd": 0.0, "rescale_grad": self.rescale_grad}
        nd.adam_update(weight, grad, m, v, **corrected, **others, out=weight)


class GluonTrainer:
    """Gluon's `Trainer`: one worker, with the same network on each of the `contexts`.

    Batches are split evenly over the devices, gradients summed before an update.
    """

    name = "gluon"
    rank, world_size = 0, 1

    def __init__(self, net: HybridBlock, config: Config, contexts: Sequence[mx.Context]):
        check_split(config, len(contexts), self.world_size)
        self.net, self.config, self.contexts = net, config, list(contexts)
        self.parameters = net._collect_params_with_prefix()
        for name, parameter in self.parameters.items():
            if rate_multiplier(name, net.description, config) == 0:
                parameter.grad_req = "null"
        # Sorted by name, as in gluon.Trainer.
        self.trained = {name: value for name, value in sorted(self.parameters.items()) if value.grad_req != "null"}
        for name, parameter in self.trained.items():
            if not (config.decay_norm_and_bias or name.endswith(".weight")):
                parameter.wd_mult = 0.0
            parameter.lr_mult = rate_multiplier(name, net.description, config)
            if config.accumulation_steps > 1:
                parameter.grad_req = "add"
        if config.optimizer == "adamw":
            update = AdamW(learning_rate=config.learning_rate, wd=config.weight_decay)
        else:
            update = NesterovSGD(config.learning_rate, config.momentum, config.weight_decay)
        kvstore = "device" if len(self.contexts) > 1 else None
        # Each device updates its own copy: an optimiser inside the store would hide its state.
        self.optimizer = gluon.Trainer(self.trained, update, kvstore=kvstore, update_on_kvstore=False)
        if config.dtype == "float16":
            amp.init_trainer(self.optimizer)
        self.scaler = getattr(self.optimizer, "_amp_loss_scaler", None)
        loss = gluon.loss.SoftmaxCrossEntropyLoss(sparse_label=False)
        if config.frozen:
            head = reduce(getattr, net.description.head.name.split("."), net)
            self.step: dict[mx.Context, Callable] = dict.fromkeys(self.contexts, Step(head, loss))
        else:
            self.step = {context: make_step(net, loss, context) for context in self.contexts}
        self.prefixes = MOMENTS[config.optimizer].values()
        self.micro_step = 0  # since the last update

    @property
    def device(self) -> str:
        return ", ".join(map(str, self.contexts))

    def loader(self, dataset: Dataset, batches: int) -> Loader:
        """Return the batches made on the host."""
        return Loader(dataset, self.config, batches)

    def train_step(self, images: np.ndarray, targets: np.ndarray, learning_rate: float) -> Callable[[], Score]:
        """Run a forward and a backward pass, and an update if it is due.

        Return a function that waits for the devices and gives the batch's score.
        """
        if self.config.frozen and images.ndim == 4:
            images = self.features(images)
        reports = []
        scale = self.scaler.loss_scale if self.scaler else 1.0
        for index, context in enumerate(self.contexts):
            x, y = (nd.array(array[index :: len(self.contexts)], context) for array in (images, targets))
            logits, losses = self.step[context](x, y, scale)
            wrong = logits.argmax(axis=1) != y.argmax(axis=1)
            reports.append(nd.stack(losses.sum().reshape(1), wrong.sum().reshape(1)).reshape(2))
        self.micro_step += 1
        if self.micro_step == self.config.accumulation_steps:
            self.optimizer.set_learning_rate(learning_rate)
            if self.scaler:
                self.optimizer._scale = 1 / scale
            self._update(self.config.batch_size * self.config.accumulation_steps, scale)
            if self.config.accumulation_steps > 1:
                for parameter in self.trained.values():
                    parameter.zero_grad()
            self.micro_step = 0

        def read() -> Score:
            total = np.sum([report.asnumpy() for report in reports], axis=0)
            return Score(float(total[0]), int(total[1]), self.config.batch_size)

        return read

    def _update(self, images: int, scale: float) -> None:
        """Update by the gradients, summed over so many images and `scale` times too large."""
        if not self.config.clip_gradient:
            self.optimizer.step(images)
            return
        self.optimizer.allreduce_grads()
        for context in self.contexts:
            gradients = [parameter.grad(context) for parameter in self.trained.values()]
            gluon.utils.clip_global_norm(gradients, self.config.clip_gradient * images * scale, check_isfinite=False)
        self.optimizer.update(images)

    def sync_batch_norm(self) -> None:
        """Average the moving statistics over the devices. Nothing else differs."""
        self._wait()
        moving = [parameter for parameter in self.parameters.values() if parameter.grad_req == "null"]
        if len(self.contexts) == 1 or not moving or self.config.frozen:
            return
        for parameter in moving:
            parameter.set_data(nd.array(np.mean([array.asnumpy() for array in parameter.list_data()], axis=0)))

    def features(self, images: np.ndarray) -> np.ndarray:
        """Return the pooled features (n, C) of images (n, 3, H, W) in float32, with a frozen body."""
        return self._body(images)

    @cached_property
    def _body(self) -> Callable[[np.ndarray], np.ndarray]:
        context = self.contexts[0]
        return predictor(build_fused(*body(self.net.description, get_arrays(self.net)), context), context)

    def averaged(self) -> dict[str, np.ndarray]:
        """Return nothing: `engine.choose` refuses this engine for a moving average."""
        return {}

    def evaluate(self, dataset: Dataset, averaged: bool = False) -> Score:
        """Return the score on a data set, or on its features."""
        self._wait()
        context = self.contexts[0]
        if dataset.images.ndim == 2:
            predict = head_predictor(self.net.description, get_arrays(self.net))
        else:  # in half precision, the network itself: it has its casts
            predict = predictor(self.net if self.config.dtype == "float16" else fuse(self.net), context)
        return evaluate(predict, dataset, batch_size(context))

    def all_reduce(self, values: np.ndarray) -> np.ndarray:
        """Return the values: there is one worker."""
        return values

    def close(self) -> None:
        """Do nothing: there are no other workers."""

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Return the parameters and the momentum, by structural name."""
        self._wait()
        parameters = get_arrays(self.net)
        states = self.optimizer._updaters[0].states
        momentum = {}
        for index, name in enumerate(self.trained):
            for prefix, array in zip(self.prefixes, states.get(index, [])):
                momentum[prefix + name] = array.asnumpy()
        if momentum and self.config.optimizer == "adamw":
            momentum[STEP] = np.array(states[0][-1], np.float64)
        if self.scaler:
            momentum[LOSS_SCALE] = np.array([getattr(self.scaler, name) for name in SCALER_FIELDS])
        return parameters, momentum

    def load_state(self, parameters: Mapping[str, np.ndarray], momentum: Mapping[str, np.ndarray]) -> None:
        """Restore a `state`. Raises BadFileError for another network's."""
        momentum = dict(momentum)
        scale = momentum.pop(LOSS_SCALE, None)
        check_state(parameters, momentum, self.parameters, self.trained, self.config.optimizer)
        steps = [int(momentum.pop(STEP))] if STEP in momentum else []
        if self.scaler and scale is not None:
            for name, value in zip(SCALER_FIELDS, scale.tolist()):
                setattr(self.scaler, name, value)
        for name, array in parameters.items():
            self.parameters[name].set_data(nd.array(array, dtype=array.dtype))
        for updater, context in zip(self.optimizer._updaters, self.contexts):
            updater.states.clear()
            updater.states_synced.clear()
            for index, name in enumerate(self.trained):
                if momentum:
                    arrays = [nd.array(momentum[prefix + name], context) for prefix in self.prefixes]
                    updater.states[index] = arrays + steps
                    updater.states_synced[index] = True

    def load_weights(self, path: Path, head: Head = "required") -> bool:
        """Load the parameters of a file. Return whether the dense layer was kept; `head` says if it may be."""
        return load_weights(self.net, path, head)

    def _wait(self) -> None:
        """Wait for the last backward pass: MXNet does not track its writes to the moving statistics."""
        mx.nd.waitall()
