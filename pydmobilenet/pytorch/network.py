"""The networks as PyTorch modules, built from their lists of layers (`pydmobilenet.network`), and their state dicts.

A module has its layer's name: ``stages.0.1.norm2`` is an ``nn.BatchNorm2d``, and ``stages.0.1`` a `Block`. A
``state_dict`` has PyTorch's names; the checkpoints' ``gamma`` and ``beta`` are loaded as ``weight`` and ``bias``.
"""

from __future__ import annotations

import pickle
import re
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
from ..checkpoints.formats import check_finite
from ..checkpoints.weights import checkpoint_names
from ..errors import BadFileError, UnusableError, hinted
from ..network import CIFAR, EPSILON, Architecture, Layer, Widths, describe, widths
from . import devices
from .pyramid import JOINS, Pyramid


class Add(nn.Module):
    """Sum of the inputs, written over the first one if `inplace`."""

    inplace = False

    def forward(self, total: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            total = total.add_(other) if self.inplace else total + other
        return total


class Join(nn.Module):
    """Join maps as a pyramid does (`JOINS`)."""

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
    # The authors' files hold an untrained scale of 1 and shift of 0 in the first one.
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
    """A module's name, its inputs, its output, and the inputs with no later use."""

    name: str
    inputs: tuple[str, ...]
    output: str
    last: tuple[str, ...]


Call = tuple[Callable[..., Tensor], Step]


def run(calls: Iterable[Call], values: dict[str, Tensor]) -> Tensor:
    """Return the last call's output. Free each value after its last use."""
    for function, (_, inputs, output, last) in calls:
        arguments = [values[name] for name in inputs]
        for name in last:
            del values[name]
        values[output] = function(*arguments)
    return values[output]


def _steps(parts: Sequence[Sequence[Layer]], names: Sequence[str]) -> list[Step]:
    """Return one step per part. A part's output is its last layer's."""
    inputs = [_inputs(part) for part in parts]
    available = {*_inputs([layer for part in parts for layer in part])}
    for name, part, needed in zip(names, parts, inputs):
        if missing := {*needed} - available:
            raise ValueError(f"{name} of {part[0].name} needs {missing.pop()} from inside another block")
        available.add(part[-1].name)
    last = {name: index for index, needed in enumerate(inputs) for name in needed}
    return [
        Step(name, needed, part[-1].name, tuple(name for name in {*needed} if last[name] == index))
        for index, (name, part, needed) in enumerate(zip(names, parts, inputs))
    ]


def _inputs(layers: Sequence[Layer]) -> tuple[str, ...]:
    """Return the inputs of layers from outside, without repeats if there are several layers."""
    if len(layers) == 1:
        return layers[0].inputs
    outputs = {layer.name for layer in layers}
    return tuple(dict.fromkeys(name for layer in layers for name in layer.inputs if name not in outputs))


class Block(nn.Module):
    """Consecutive layers with the same name `prefix`. The block's output is the last one's.

    Raises ValueError if the layers are not consecutive, or another block needs an inner output.
    """

    grad_checkpointing = False  # recompute the block for its gradients, in less memory

    def __init__(self, layers: Sequence[Layer], prefix: str = ""):
        super().__init__()
        self.inputs = _inputs(layers)
        groups = groupby(layers, lambda layer: layer.name[len(prefix) :].partition(".")[0] or "join")
        parts = [(name, list(part)) for name, part in groups]
        for name, part in parts:
            if name in self._modules:
                raise ValueError(f"the layers of {prefix}{name} are not consecutive")
            alone = len(part) == 1 and part[0].name in (prefix + name, prefix[:-1])
            self.add_module(name, MODULES[type(part[0])](part[0]) if alone else Block(part, f"{prefix}{name}."))
        self.plan = _steps([part for _, part in parts], [name for name, _ in parts])

    def forward(self, *inputs: Tensor, pre_logits: bool = False) -> Tensor:
        """Compute the output, or with `pre_logits` the last layer's input."""
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(self._run, *inputs, use_reentrant=False)
        return self._run(*inputs, pre_logits=pre_logits)

    def _run(self, *inputs: Tensor, pre_logits: bool = False) -> Tensor:
        return run(self.calls(self.plan, pre_logits), dict(zip(self.inputs, inputs)))

    def calls(self, plan: list[Step], pre_logits: bool = False) -> list[Call]:
        calls: list[Any] = [(self._modules[step.name], step) for step in plan]
        if pre_logits:
            last, step = calls[-1]
            calls[-1] = partial(last, pre_logits=True) if isinstance(last, Block) else nn.Identity(), step
        return calls

    def __getitem__(self, index: int) -> nn.Module:
        return list(self.children())[index]


class Network(Block):
    """Normalised images (N, 3, H, W) to logits (N, outputs). H and W: 32 in the paper, else a multiple of 4."""

    def __init__(self, description: network.Network):
        super().__init__(description.layers)
        self.description = description
        pool = description.layers[-1].inputs[0]
        middle = [f"{pool}.".startswith(f"{step.name}.") for step in self.plan].index(True)
        self.body, self.top = self.plan[:middle], self.plan[middle:]

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last map, (N, channels, H / 4, W / 4)."""
        return run(self.calls(self.body), {self.inputs[0]: x})

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of the last map, or with `pre_logits` the pooled features (N, features)."""
        return run(self.calls(self.top, pre_logits), {self.top[0].inputs[0]: x})

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # one input, where blocks may have several
        return self.forward_head(self.forward_features(x))

    def calls_of_layers(self) -> list[Call]:
        """Return the layers' calls without blocks and hooks: for one image, a fifth faster."""
        layers = self.description.layers
        modules = [self.get_submodule(layer.name) for layer in layers]
        modules = [module.get_submodule("join") if isinstance(module, Block) else module for module in modules]
        steps = _steps([[layer] for layer in layers], [layer.name for layer in layers])
        return [(module.forward, step) for module, step in zip(modules, steps)]

    @property
    def num_features(self) -> int:
        """Number of pooled features."""
        return self.description.head.in_features

    @property
    def num_classes(self) -> int:
        """Number of logits; 0 without a classifier."""
        return getattr(self.get_classifier(), "out_features", 0)

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.get_submodule(self.description.head.name)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last layer by a fresh one; with 0 classes, return pooled features."""
        head, weight = self.description.head, next(self.parameters())
        classifier: nn.Module = nn.Identity()
        if num_classes:
            classifier = nn.Linear(head.in_features, num_classes, device=weight.device, dtype=weight.dtype)
            layers = *self.description.layers[:-1], replace(head, out_features=num_classes)
            self.description = network.Network(layers)
        parent, _, name = head.name.rpartition(".")
        setattr(self.get_submodule(parent), name, classifier)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *others: Any) -> None:
        """Accept the checkpoints' names too."""
        for layer in self.description.layers:
            name = f"{prefix}{layer.name}."
            if isinstance(layer, network.BatchNorm):
                for old, new in (("gamma", "weight"), ("beta", "bias")):
                    if name + old in state:
                        state[name + new] = state.pop(name + old)
                if not layer.scale and f"{name}weight" in state:
                    state[f"{name}weight"] = torch.ones_like(state[f"{name}weight"])
        super()._load_from_state_dict(state, prefix, *others)


def overwrite(net: Block, training: bool) -> None:
    """Run activations and sums in place if nothing else needs their input: faster, but hooks would see the result.

    In `training`, only behind a batch normalisation: its gradient does not need its output.
    """
    for block in (module for module in net.modules() if isinstance(module, Block)):
        producers: dict[str, nn.Module] = {}
        for step in block.plan:
            module, first = block.get_submodule(step.name), producers.get(step.inputs[0])
            inplace = step.inputs[0] in step.last and step.inputs.count(step.inputs[0]) == 1
            if isinstance(module, (nn.ReLU, Add)) and first and inplace:
                module.inplace = not training or isinstance(first, nn.BatchNorm2d)
            producers[step.output] = module


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
    """Return a network as `pydmobilenet.get_model` does, in evaluation mode: normalised images (N, 3, 32, 32) to logits
    (N, outputs). `device` is a name or a ``torch.device``; by default the CPU.
    """
    return make(checkpoints.resolve(name, dataset, classes, pretrained, weights, weights_dir), device)


def make(source: checkpoints.Checkpoint, device: str | torch.device | None = None) -> nn.Module:
    """Build the network of `get_model`."""
    net = build(parse_name(source.model), source.task.outputs, widths(source.dataset))
    initialize(net)
    set_arrays(net, source.arrays())
    return net.eval().to(devices.choose(device).device if isinstance(device, str) else device)


def build(architecture: Architecture, outputs: int, widths: Widths = CIFAR) -> Network:
    """Build an architecture. Raises UnusableError if it does not fit into memory."""
    description = describe(architecture, outputs, widths)
    machine.check_memory(f"{architecture.name} with {outputs} outputs", description.complexity().parameters)
    return Network(description)


# The distributions of Gluon's ``mx.init.Xavier()`` and ``mx.init.MSRAPrelu()`` (slope 0.25).
INITIALISERS: dict[str, Callable[..., torch.Tensor]] = {
    "xavier": nn.init.xavier_uniform_,
    "msra": lambda weight, generator: nn.init.xavier_normal_(weight, (2 / (1 + 0.25**2)) ** 0.5, generator),
}


def initialize(net: nn.Module, initialiser: str = "msra", seed: int | None = None) -> None:
    """Draw the weights, from a separate generator if a `seed` is given; biases are 0."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            INITIALISERS[initialiser](module.weight, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def set_arrays(net: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Set the parameters with these checkpoint names; keep the others."""
    if unknown := arrays.keys() - checkpoint_names(net.state_dict()).values():
        raise KeyError(unknown.pop())
    net.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()}, strict=False)


def get_arrays(net: nn.Module) -> dict[str, np.ndarray]:
    """Copy the parameters by checkpoint name."""
    state = net.state_dict()
    return {name: state[key].detach().cpu().numpy().copy() for key, name in checkpoint_names(state).items()}


WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys of training checkpoints
PREFIXES = re.compile(r"^(module\.|_orig_mod\.)+")  # of DataParallel and torch.compile


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Read ``torch.save(net.state_dict(), FILE)`` as float32, without prefixes and ``num_batches_tracked``.

    Raises BadFileError for a damaged file, other objects than tensors, and values that are not finite.
    """
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):  # weights_only ran code (CVE-2025-32434)
        raise UnusableError(f"PyTorch {torch.__version__} does not read {path} safely (allowed: 2.6 and newer)")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        advice = "torch.save(net.state_dict(), FILE) writes what can be read"
        raise BadFileError(f"{path} holds more than tensors, or is damaged: {advice}") from None
    except Exception as error:  # torch.load raises anything on damaged files
        why = " ".join(str(error).split()) or type(error).__name__
        raise BadFileError(f"{path} is not a PyTorch file, or damaged: {why[:200]}") from None
    if isinstance(content, Mapping):
        content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not content:
        raise BadFileError(f"{path} holds no state dict; torch.save(net.state_dict(), FILE) writes one")
    arrays = {}
    for key, tensor in content.items():
        name = PREFIXES.sub("", str(key))
        if not isinstance(tensor, torch.Tensor):
            raise BadFileError(f"{path} has a {type(tensor).__name__} at {name[:100]!r} (allowed: tensors)")
        if name in arrays:
            raise BadFileError(f"{path} has {name[:100]!r} twice")
        if name.rpartition(".")[2] == "num_batches_tracked":
            continue
        try:
            arrays[name] = tensor.detach().to(torch.float32).numpy()
        except (RuntimeError, TypeError) as error:  # sparse, without data, or complex
            why = " ".join(str(error).split())[:100]
            raise BadFileError(f"{path}, {name[:100]!r}: not a dense tensor of real numbers ({why})") from None
    check_finite(path, arrays)
    return arrays
