"""Training with Gluon: gradients on one or several devices, the optimiser, evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

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
from ..training.trainer import LOSS_SCALE, check_split, check_state, rate_multiplier
from .inference import batch_size, fuse, predictor
from .network import build_for, get_arrays, load_weights
from .optimizer import NesterovSGD
from .pyramid import make_step

SCALER_FIELDS = ("_loss_scale", "_next_loss_scale", "_unskipped")
INITIALISERS = {"msra": mx.init.MSRAPrelu, "xavier": mx.init.Xavier}


def make(config: Config, task: Task, contexts: Sequence[mx.Context]) -> GluonTrainer:
    """A trainer with fresh parameters on these devices.

    Raises InvalidValueError and UnusableError for what this machine cannot do.
    """
    if config.dtype == "float16":
        if any(context.device_type != "gpu" for context in contexts):
            raise UnusableError("dtype 'float16' needs a GPU (allowed on a CPU: float32)")
        amp.init()  # before the network is made
    net = build_for(config.model, config.dataset, task.outputs)
    initialize(net, config, contexts)
    return GluonTrainer(net, config, contexts)


def initialize(net: HybridBlock, config: Config, contexts: Sequence[mx.Context]) -> None:
    """Draw the parameters; the same seed draws the same ones on every device."""
    mx.random.seed(config.seed)
    net.initialize(INITIALISERS[config.initialiser](), ctx=list(contexts))


class GluonTrainer:
    """The `Trainer` of Gluon: a network that is the same on each of the `contexts`; there are no other workers.

    Each pass splits a batch evenly over the devices. Their gradients are summed before an update.
    """

    name = "gluon"
    rank, world_size = 0, 1

    def __init__(self, net: HybridBlock, config: Config, contexts: Sequence[mx.Context]):
        check_split(config, len(contexts), self.world_size)
        self.net, self.config, self.contexts = net, config, list(contexts)
        self.parameters = net._collect_params_with_prefix()
        # In the order of their names, which is gluon.Trainer's.
        self.trained = {name: each for name, each in sorted(self.parameters.items()) if each.grad_req != "null"}
        for name, parameter in self.trained.items():
            if not (config.decay_norm_and_bias or name.endswith(".weight")):
                parameter.wd_mult = 0.0
            parameter.lr_mult = rate_multiplier(name, net.description, config)
            if config.accumulation_steps > 1:
                parameter.grad_req = "add"
        sgd = NesterovSGD(config.learning_rate, config.momentum, config.weight_decay)
        kvstore = "device" if len(self.contexts) > 1 else None
        # Each device updates its own copy: an optimiser inside the store would keep its state to itself.
        self.optimizer = gluon.Trainer(self.trained, sgd, kvstore=kvstore, update_on_kvstore=False)
        if config.dtype == "float16":
            amp.init_trainer(self.optimizer)
        self.scaler = getattr(self.optimizer, "_amp_loss_scaler", None)
        loss = gluon.loss.SoftmaxCrossEntropyLoss(sparse_label=False)
        self.step = {context: make_step(net, loss, context) for context in self.contexts}
        self.passes = 0  # since the last update

    @property
    def device(self) -> str:
        return ", ".join(map(str, self.contexts))

    def train_step(self, images: np.ndarray, targets: np.ndarray, learning_rate: float) -> Callable[[], Score]:
        """Do a forward and a backward pass, and an update if it is due.

        The function returned is the only one that waits for the devices. It gives the score of the whole batch.
        """
        reports = []
        scale = self.scaler.loss_scale if self.scaler else 1.0
        parts = len(self.contexts)
        for part, context in enumerate(self.contexts):
            x, y = (nd.array(array[part::parts], context) for array in (images, targets))
            logits, losses = self.step[context](x, y, scale)
            wrong = logits.argmax(axis=1) != y.argmax(axis=1)
            reports.append(nd.stack(losses.sum().reshape(1), wrong.sum().reshape(1)).reshape(2))
        self.passes += 1
        if self.passes == self.config.accumulation_steps:
            self.optimizer.set_learning_rate(learning_rate)
            if self.scaler:
                self.optimizer._scale = 1 / scale
            self.optimizer.step(self.config.batch_size * self.config.accumulation_steps)
            if self.config.accumulation_steps > 1:
                for parameter in self.trained.values():
                    parameter.zero_grad()
            self.passes = 0

        def read() -> Score:
            total = np.sum([report.asnumpy() for report in reports], axis=0)
            return Score(float(total[0]), int(total[1]), self.config.batch_size)

        return read

    def sync_batch_norm(self) -> None:
        """Set the moving statistics to their mean over all devices. Nothing else differs."""
        self._wait()
        moving = [each for each in self.parameters.values() if each.grad_req == "null"]
        if len(self.contexts) == 1 or not moving:
            return
        for parameter in moving:
            parameter.set_data(nd.array(np.mean([each.asnumpy() for each in parameter.list_data()], axis=0)))

    def evaluate(self, dataset: Dataset) -> Score:
        """The score on a whole data set."""
        self._wait()
        context = self.contexts[0]
        # Of a network in half precision, the unfused graph: it has casts of its own.
        predict = predictor(self.net if self.config.dtype == "float16" else fuse(self.net), context)
        return evaluate(predict, dataset, batch_size(context))

    def all_reduce(self, values: np.ndarray) -> np.ndarray:
        """The values as they are: there is one worker."""
        return values

    def close(self) -> None:
        """Nothing to do: there is nobody to wait for."""

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The parameters and the momentum, by structural name."""
        self._wait()
        parameters = get_arrays(self.net)
        states = self.optimizer._updaters[0].states
        momentum = {
            name: states[index].asnumpy() for index, name in enumerate(self.trained) if states.get(index) is not None
        }
        if self.scaler:
            momentum[LOSS_SCALE] = np.array([getattr(self.scaler, name) for name in SCALER_FIELDS])
        return parameters, momentum

    def load_state(self, parameters: Mapping[str, np.ndarray], momentum: Mapping[str, np.ndarray]) -> None:
        """Go back to what `state` gave. Raises BadFileError for the state of another network."""
        momentum = dict(momentum)
        scale = momentum.pop(LOSS_SCALE, None)
        check_state(parameters, momentum, self.parameters, self.trained)
        if self.scaler and scale is not None:
            for name, value in zip(SCALER_FIELDS, scale.tolist()):
                setattr(self.scaler, name, value)
        for name, array in parameters.items():
            self.parameters[name].set_data(nd.array(array, dtype=array.dtype))
        for updater, context in zip(self.optimizer._updaters, self.contexts):
            updater.states.clear()
            updater.states_synced.clear()
            for index, name in enumerate(self.trained):
                if name in momentum:
                    updater.states[index] = nd.array(momentum[name], context)
                    updater.states_synced[index] = True

    def load_weights(self, path: Path, head: Head = "required") -> bool:
        """Load the parameters of a file. Returns whether the dense layer kept its own, as `head` says."""
        return load_weights(self.net, path, head)

    def _wait(self) -> None:
        """Let the last backward pass end: MXNet does not know that it still writes the moving statistics."""
        mx.nd.waitall()
