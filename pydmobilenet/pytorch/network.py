"""The networks as PyTorch modules, made of their lists of layers (`pydmobilenet.network`).

A layer's module stands under the layer's name: ``stages.0.1.norm2`` is an ``nn.BatchNorm2d``. Names with the same
beginning share a `Block`, so that ``stages.0.1`` is a module too. A ``state_dict`` has PyTorch's own names of the
parameters. Checkpoints call the scale and shift of a batch normalisation ``gamma`` and ``beta``, and such names are
loaded as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .. import checkpoints, machine, network
from ..catalog import parse_name
from ..checkpoints.weights import checkpoint_names
from ..errors import hinted
from ..network import CIFAR, EPSILON, Architecture, Layer, Widths, describe, widths
from . import devices
from .pyramid import JOINS, Pyramid


class Add(nn.Module):
    """The sum of its inputs. With `inplace`, it stands where the first one stood."""

    inplace = False

    def forward(self, total: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            total = total.add_(other) if self.inplace else total + other
        return total


class Join(nn.Module):
    """Several maps made one, as a pyramid does it."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def forward(self, *maps: Tensor) -> Tensor:
        return JOINS[self.kind](*maps)

    def extra_repr(self) -> str:
        return self.kind


class GlobalAveragePool(nn.Module):
    """(N, C, H, W) to (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def _convolution(layer: network.Convolution) -> nn.Conv2d:
    shape = layer.in_channels, layer.out_channels, layer.kernel, layer.stride, layer.kernel // 2
    return nn.Conv2d(*shape, groups=layer.groups, bias=layer.bias)


def _batch_norm(layer: network.BatchNorm) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(layer.channels, EPSILON)
    # The authors' files hold a scale of 1 and a shift of 0 in the first one, which nothing trains.
    return norm if layer.scale else norm.requires_grad_(False)


MODULES: dict[type[Layer], Callable[[Any], nn.Module]] = {
    network.Convolution: _convolution,
    network.Pyramid: lambda layer: Pyramid(layer.channels, layer.kernels, layer.stride, layer.join),
    network.BatchNorm: _batch_norm,
    network.ReLU: lambda layer: nn.ReLU(),
    network.Add: lambda layer: Add(),
    network.Maximum: lambda layer: Join("max"),
    network.Concat: lambda layer: Join("concat"),
    network.GlobalAveragePool: lambda layer: GlobalAveragePool(),
    network.Dense: lambda layer: nn.Linear(layer.in_features, layer.out_features),
}


class Step(NamedTuple):
    """A module's name, the values that it takes, the one that it gives, and those that no later step takes."""

    name: str
    inputs: tuple[str, ...]
    output: str
    last: tuple[str, ...]


Call = tuple[Callable[..., Tensor], Step]


def run(calls: Iterable[Call], values: dict[str, Tensor]) -> Tensor:
    """The output of the last of some calls. Values are let go after their last use."""
    for function, (_, inputs, output, last) in calls:
        arguments = [values[name] for name in inputs]
        for name in last:
            del values[name]
        values[output] = function(*arguments)
    return values[output]


def _steps(parts: Sequence[Sequence[Layer]], names: Sequence[str]) -> list[Step]:
    """The steps of a computation in parts, of which each gives its last layer's output."""
    inputs = [_inputs(part) for part in parts]
    available = {*_inputs([layer for part in parts for layer in part])}
    for name, part, taken in zip(names, parts, inputs):
        if missing := {*taken} - available:
            raise ValueError(f"{name} of {part[0].name} takes {missing.pop()}, which is inside of another part")
        available.add(part[-1].name)
    last = {name: place for place, taken in enumerate(inputs) for name in taken}
    return [
        Step(name, taken, part[-1].name, tuple(each for each in {*taken} if last[each] == place))
        for place, (name, part, taken) in enumerate(zip(names, parts, inputs))
    ]


def _inputs(layers: Sequence[Layer]) -> tuple[str, ...]:
    """What layers take of others, or of the images; several layers take nothing twice."""
    if len(layers) == 1:
        return layers[0].inputs
    own = {layer.name for layer in layers}
    return tuple(dict.fromkeys(name for layer in layers for name in layer.inputs if name not in own))


class Block(nn.Module):
    """Layers whose names begin with the same `prefix`, in the order of computing. The last one's output is the block's.

    Raises ValueError where other layers stand in between, or take another output.
    """

    grad_checkpointing = False  # whether the gradients are computed from the inputs alone, in less memory

    def __init__(self, layers: Sequence[Layer], prefix: str = ""):
        super().__init__()
        self.inputs = _inputs(layers)
        groups = groupby(layers, lambda layer: layer.name[len(prefix) :].partition(".")[0] or "join")
        parts = [(name, list(part)) for name, part in groups]
        for name, part in parts:
            if name in self._modules:
                raise ValueError(f"the layers of {prefix}{name} do not follow each other")
            alone = len(part) == 1 and part[0].name in (prefix + name, prefix[:-1])
            self.add_module(name, MODULES[type(part[0])](part[0]) if alone else Block(part, f"{prefix}{name}."))
        self.plan = _steps([part for _, part in parts], [name for name, _ in parts])

    def forward(self, *inputs: Tensor, pre_logits: bool = False) -> Tensor:
        """With `pre_logits`, what the last layer would see."""
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(self._run, *inputs, use_reentrant=False)
        return self._run(*inputs, pre_logits=pre_logits)

    def _run(self, *inputs: Tensor, pre_logits: bool = False) -> Tensor:
        return run(self.calls(self.plan, pre_logits), dict(zip(self.inputs, inputs)))

    def calls(self, plan: list[Step], pre_logits: bool = False) -> list[Call]:
        found: list[Any] = [(self._modules[step.name], step) for step in plan]
        if pre_logits:
            last, step = found[-1]
            found[-1] = partial(last, pre_logits=True) if isinstance(last, Block) else nn.Identity(), step
        return found

    def __getitem__(self, place: int) -> nn.Module:
        return list(self.children())[place]


class Network(Block):
    """Normalised images (N, 3, H, W) to logits (N, outputs), as `description` says; H and W are 32 in the paper, any
    multiple of 4 works.
    """

    def __init__(self, description: network.Network):
        super().__init__(description.layers)
        self.description = description
        pool = description.layers[-1].inputs[0]
        middle = [f"{pool}.".startswith(f"{step.name}.") for step in self.plan].index(True)
        self.body, self.top = self.plan[:middle], self.plan[middle:]

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, (N, channels, H / 4, W / 4)."""
        return run(self.calls(self.body), {self.inputs[0]: x})

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """From the last map to logits, or with `pre_logits` to the pooled features (N, features)."""
        return run(self.calls(self.top, pre_logits), {self.top[0].inputs[0]: x})

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # one input, where blocks may have several
        return self.forward_head(self.forward_features(x))

    def calls_of_layers(self) -> list[Call]:
        """The layers without the blocks around them, and without hooks: for one image it is a fifth faster."""
        layers = self.description.layers
        modules = [self.get_submodule(layer.name) for layer in layers]
        modules = [module.get_submodule("join") if isinstance(module, Block) else module for module in modules]
        steps = _steps([[layer] for layer in layers], [layer.name for layer in layers])
        return [(module.forward, step) for module, step in zip(modules, steps)]

    @property
    def num_features(self) -> int:
        """The number of pooled features."""
        return self.description.head.in_features

    @property
    def num_classes(self) -> int:
        """The number of logits; 0 where the answers are the pooled features."""
        return getattr(self.get_classifier(), "out_features", 0)

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.get_submodule(self.description.head.name)

    def reset_classifier(self, num_classes: int) -> None:
        """Put a fresh last layer in place; with 0 classes none, so that the answers are the pooled features."""
        head, weight = self.description.head, next(self.parameters())
        classifier: nn.Module = nn.Identity()
        if num_classes:
            classifier = nn.Linear(head.in_features, num_classes, device=weight.device, dtype=weight.dtype)
            layers = *self.description.layers[:-1], replace(head, out_features=num_classes)
            self.description = network.Network(layers)
        parent, _, name = head.name.rpartition(".")
        setattr(self.get_submodule(parent), name, classifier)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *others: Any) -> None:
        """Take the names of checkpoints too."""
        for layer in self.description.layers:
            name = f"{prefix}{layer.name}."
            if isinstance(layer, network.BatchNorm):
                for ours, theirs in (("gamma", "weight"), ("beta", "bias")):
                    if name + ours in state:
                        state[name + theirs] = state.pop(name + ours)
                if not layer.scale and f"{name}weight" in state:
                    state[f"{name}weight"] = torch.ones_like(state[f"{name}weight"])
        super()._load_from_state_dict(state, prefix, *others)


def overwrite(net: Block, training: bool) -> None:
    """Have activations and sums stand where their inputs stood, which nothing else needs: it is faster. Hooks would see
    what has been written over. In `training`, only what batch normalisations give, whose gradient does without it.
    """
    for block in (module for module in net.modules() if isinstance(module, Block)):
        made: dict[str, nn.Module] = {}
        for step in block.plan:
            module, first = block.get_submodule(step.name), made.get(step.inputs[0])
            spare = step.inputs[0] in step.last and step.inputs.count(step.inputs[0]) == 1
            if isinstance(module, (nn.ReLU, Add)) and first and spare:
                module.inplace = not training or isinstance(first, nn.BatchNorm2d)
            made[step.output] = module


@hinted
def get_model(
    name: str | None = None,
    dataset: str | None = None,
    classes: int | None = None,
    pretrained: bool = False,
    device: str | torch.device | None = None,
    weights: str | Path | None = None,
    weights_dir: str | Path | None = None,
) -> nn.Module:
    """A PyTorch network of the zoo, as `pydmobilenet.get_model` has it: normalised images (N, 3, 32, 32) to logits
    (N, outputs). It is in evaluation mode; ``net.train()`` before training.

    `device` is a name that `pytorch.devices.choose` knows, or a ``torch.device``; by default the CPU. Raises as
    `pydmobilenet.get_model` does.
    """
    return make(checkpoints.resolve(name, dataset, classes, pretrained, weights, weights_dir), device)


def make(source: checkpoints.Checkpoint, device: str | torch.device | None = None) -> nn.Module:
    """The network that `get_model` is asked for."""
    net = build(parse_name(source.model), source.task.outputs, widths(source.dataset))
    initialize(net)
    set_arrays(net, source.arrays())
    return net.eval().to(devices.choose(device).device if isinstance(device, str) else device)


def build(architecture: Architecture, outputs: int, widths: Widths = CIFAR) -> Network:
    """The network of an architecture. Raises UnusableError for one that does not fit into this machine's memory."""
    description = describe(architecture, outputs, widths)
    machine.check_memory(f"{architecture.name} with {outputs} outputs", description.complexity().parameters)
    return Network(description)


# By the same distributions as Gluon's ``mx.init.Xavier()`` and ``mx.init.MSRAPrelu()``, whose slope is 0.25.
INITIALISERS: dict[str, Callable[..., torch.Tensor]] = {
    "xavier": nn.init.xavier_uniform_,
    "msra": lambda weight, generator: nn.init.xavier_normal_(weight, (2 / (1 + 0.25**2)) ** 0.5, generator),
}


def initialize(net: nn.Module, initialiser: str = "msra", seed: int | None = None) -> None:
    """Draw the weights, by a generator of its own if there is a `seed`; biases are 0."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            INITIALISERS[initialiser](module.weight, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def set_arrays(net: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Give a network the parameters of these names in checkpoints; the others stay as they are."""
    if unknown := arrays.keys() - checkpoint_names(net.state_dict()).values():
        raise KeyError(unknown.pop())
    net.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()}, strict=False)


def get_arrays(net: nn.Module) -> dict[str, np.ndarray]:
    """A copy of the parameters by their names in checkpoints."""
    state = net.state_dict()
    return {name: state[own].detach().cpu().numpy().copy() for own, name in checkpoint_names(state).items()}
