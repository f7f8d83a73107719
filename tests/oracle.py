"""The description of a network, computed in float64 by NumPy: an oracle that shares no code with any engine."""

import numpy as np

from pydmobilenet.checkpoints import formats
from pydmobilenet.network import EPSILON, IMAGES, Convolution, Dense, GlobalAveragePool, Network
from pydmobilenet.network import FAMILIES as REGISTRY

# A small network of each family.
FAMILIES = [
    f"{name}-{family.layers_per_block + family.other_layers}-{2 if family.whole_multiplier else 0.25}"
    for name, family in REGISTRY.items()
]


def logits(network, arrays, images):
    """The logits (N, outputs) of images (N, 3, H, W)."""
    return outputs(network, arrays, images)[network.layers[-1].name]


def outputs(network, arrays, images, training=False):
    """The output of each layer, by its name; in `training`, normalised by the batch's own statistics."""
    values = {IMAGES: images.astype(np.float64)}
    for layer in network.layers:
        own = {name: arrays[f"{layer.name}.{name}"].astype(np.float64) for name in layer.parameters}
        if training and layer.operator == "BatchNorm":
            x = values[layer.inputs[0]]
            own.update(running_mean=x.mean(axis=(0, 2, 3)), running_var=x.var(axis=(0, 2, 3)))
        values[layer.name] = OPERATORS[layer.operator](layer, own, *(values[name] for name in layer.inputs))
    return values


def convolution(layer, own, x):
    margin = layer.kernel // 2
    padded = np.pad(x, ((0, 0), (0, 0), (margin, margin), (margin, margin)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (layer.kernel, layer.kernel), axis=(2, 3))
    windows = windows[:, :, :: layer.stride, :: layer.stride]
    images, _, height, width = windows.shape[:4]
    windows = windows.reshape(images, layer.groups, -1, height, width, layer.kernel, layer.kernel)
    weight = own["weight"].reshape(layer.groups, -1, *own["weight"].shape[1:])
    y = np.einsum("ngchwij,gocij->ngohw", windows, weight, optimize=True)
    y = y.reshape(images, layer.out_channels, height, width)
    return y + own["bias"][:, None, None] if layer.bias else y


def depthwise(x, weight, stride):
    """Each channel of x (N, C, H, W) by its own square kernel, of the weight (C, 1, k, k)."""
    size = weight.shape[-1]
    margin = size // 2
    padded = np.pad(x, ((0, 0), (0, 0), (margin, margin), (margin, margin)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(2, 3))
    return np.einsum("nchwij,cij->nchw", windows[:, :, ::stride, ::stride], weight[:, 0], optimize=True)


def pyramid(layer, own, x):
    maps = [depthwise(x, own[f"conv{kernel}.weight"], layer.stride) for kernel in layer.kernels]
    return {"add": sum, "concat": lambda maps: np.concatenate(maps, axis=1), "max": np.maximum.reduce}[layer.join](maps)


def batch_norm(layer, own, x):
    gamma, beta, mean, variance = (
        own[name][:, None, None] for name in ("gamma", "beta", "running_mean", "running_var")
    )
    normal = (x - mean) / np.sqrt(variance + EPSILON)
    return normal * gamma + beta if layer.scale else normal + beta


OPERATORS = {
    "Convolution": convolution,
    "Pyramid": pyramid,
    "BatchNorm": batch_norm,
    "ReLU": lambda layer, own, x: np.maximum(x, 0),
    "Add": lambda layer, own, *inputs: sum(inputs),
    "Maximum": lambda layer, own, *inputs: np.maximum.reduce(inputs),
    "Concat": lambda layer, own, *inputs: np.concatenate(inputs, axis=1),
    "GlobalAveragePool": lambda layer, own, x: x.mean(axis=(2, 3)),
    "Dense": lambda layer, own, x: x @ own["weight"].T + own["bias"],
}


def random_arrays(network, seed=0):
    """Arrays in float32 in which every parameter matters: statistics, scales and shifts too. The fixed scale of a batch
    normalisation is 1, as in every file.
    """
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in network.parameters.items():
        kind = name.rsplit(".", 1)[1]
        if kind in ("gamma", "running_var"):
            array = rng.uniform(0.5, 1.5, shape)
        elif kind == "weight":
            array = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        else:
            array = rng.uniform(-0.5, 0.5, shape)
        arrays[name] = array.astype(np.float32)
    for layer in network.layers:
        if getattr(layer, "scale", True) is False:
            arrays[f"{layer.name}.gamma"][:] = 1
            arrays[f"{layer.name}.beta"][:] = 0
    return arrays


def write_random(path, network):
    """Write `random_arrays` of a network as a ``.params`` file."""
    path.write_bytes(formats.dump_params(random_arrays(network)))


def conv(name, inputs, channels=4, kernel=3, **options):
    return Convolution(name, (inputs,), 3 if inputs == "images" else 4, channels, kernel, **options)


def ended(*layers):
    pool = GlobalAveragePool("pool", (layers[-1].name,))
    return Network((*layers, pool, Dense("dense", ("pool",), 4, 3)))
