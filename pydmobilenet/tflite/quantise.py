"""The scales of int8 maps, from their values on calibration images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..errors import BadFileError
from ..folding import Arrays, fused_relus
from ..network import Concat, Maximum, Network
from . import graph, session
from .graph import Scale

BATCH = 50
LEVELS = 256
SAMPLES = 10_000  # values of a map, of each batch
PARTS = [part / 20 for part in range(20, 5, -1)]  # of a range, tried from the whole one on


def scales(network: Network, arrays: Arrays, image: tuple[int, int, int], pixels: np.ndarray) -> dict[str, Scale]:
    """Return the scale of each map of a graph, by its values on pixels (N, H, W, 3) in uint8.

    What is joined has the scale of the join, so that nothing is rounded there. Raises BadFileError for values that are
    not finite.
    """
    samples: dict[str, list[np.ndarray]] = {}
    generator = np.random.default_rng(0)
    for name, values in _maps(network, arrays, image, pixels):
        if not np.isfinite(values).all():
            raise BadFileError(f"{name} has values that are not finite on the calibration images")
        few = values.ravel()[generator.integers(0, values.size, SAMPLES)]
        samples.setdefault(name, []).append(np.append(few, [values.min(), values.max()]))
    ranges = {name: _range(np.concatenate(batches)) for name, batches in samples.items()}
    for layer in network.layers:
        if isinstance(layer, (Concat, Maximum)):
            names = [*layer.inputs, layer.name]
            lows, highs = zip(*(ranges[name] for name in names))
            ranges.update(dict.fromkeys(names, (min(lows), max(highs))))
    return {name: _scale(*values) for name, values in ranges.items()}


def _range(values: np.ndarray) -> tuple[float, float]:
    """Return the range around 0 of the least squared error in int8: a part of the range of all values."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)

    def error(part: float) -> float:
        step, zero = _scale(part * low, part * high)
        whole = np.clip(np.rint(values / step) + zero, -LEVELS // 2, LEVELS // 2 - 1)
        return float(np.square((whole - zero) * step - values).mean())

    best = min(PARTS, key=error)
    return best * low, best * high


def _scale(low: float, high: float) -> Scale:
    step = max((high - low) / (LEVELS - 1), 1e-9)
    return step, round(-LEVELS / 2 - low / step)


def _maps(
    network: Network, arrays: Arrays, image: tuple[int, int, int], pixels: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the maps of all layers by name, batch by batch, in float32."""
    fused = fused_relus(network)
    names = [layer.name for layer in network.layers if layer.name not in fused]
    content = graph.convert(network, arrays, image)
    for start in range(0, len(pixels), BATCH):
        batch = pixels[start : start + BATCH]
        net = session.interpreter(content, len(batch), keep=True)
        numbers = {tensor["name"]: tensor["index"] for tensor in net.get_tensor_details()}
        numbers[network.head.name] = numbers[graph.LOGITS]
        net.set_tensor(net.get_input_details()[0]["index"], batch)
        net.invoke()
        for name in names:
            yield name, net.get_tensor(numbers[name])
