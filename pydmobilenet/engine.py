"""The engines of validation, Gluon and ONNX Runtime: a record in, a function from images to logits out."""

from __future__ import annotations

from pathlib import Path

import mxnet as mx
import numpy as np
from mxnet.gluon.block import HybridBlock

from . import catalog, complexity, zoo
from .catalog import Complexity, Record
from .checkpoints import runs
from .data import get_task
from .errors import UnusableError
from .gluon.inference import fuse
from .processes import processors
from .text import printable
from .validation import Predict


class GluonEngine:
    """Networks of the zoo on one device. `weights_dir` is where published checkpoints are looked for first.

    They are fused before they answer, which changes no more than rounding does; without `fused`, they run literally.
    """

    def __init__(
        self, context: mx.Context, weights_dir: Path | None = None, fused: bool = True, print_net: bool = False
    ):
        self.context = context
        self.weights_dir = weights_dir
        self.fused = fused
        self.print_net = print_net

    @property
    def batch_size(self) -> int:
        """Images a call."""
        return batch_size(self.context)

    @property
    def processes(self) -> int:
        """How many processes may work at once. On a CPU, one a processor is faster than one with all processors."""
        return 1 if self.print_net or self.context.device_type != "cpu" else processors()

    def count(self, record: Record) -> Complexity:
        """The exact parameters and multiply-adds of a record's network."""
        outputs = record.task.outputs if record.task else None
        net = zoo.build(catalog.parse_name(record.model), record.dataset, outputs)
        if self.print_net:
            print(printable(f"{record.model} on {record.dataset}"))
            mx.visualization.print_summary(net(mx.sym.var("data")), {"data": (1, 3, 32, 32)})
        return complexity.count(net)

    def load(self, record: Record) -> Predict:
        """The network with the record's weights: images (N, 3, 32, 32) in float32 to logits (N, outputs)."""
        return predictor(self.network(record), self.context)

    def network(self, record: Record, portable: bool = False) -> HybridBlock:
        """The network with the record's weights, fused if that is wanted."""
        where = {"pretrained": True, "weights_dir": self.weights_dir}
        if not record.published:
            where = {"weights": runs.verified(record), "classes": record.task.outputs}
        net = zoo.get_model(record.model, record.dataset, device=self.context, **where)
        return fuse(net, portable) if self.fused else net


class OnnxRuntimeEngine(GluonEngine):
    """The same networks, run by ONNX Runtime on the CPU. Raises UnusableError for another device, or without it."""

    def __init__(
        self, context: mx.Context, weights_dir: Path | None = None, fused: bool = True, print_net: bool = False
    ):
        if context.device_type != "cpu":
            raise UnusableError(f"engine 'onnxruntime' runs on the CPU here, not on {context}; nearest: --device cpu")
        from .onnx import session  # noqa: F401  whether it is there has to be known before anything is begun

        super().__init__(context, weights_dir, fused, print_net)

    def load(self, record: Record) -> Predict:
        """The network with the record's weights: images (N, 3, 32, 32) in float32 to logits (N, outputs)."""
        from .onnx import graph, session

        return session.predictor(graph.convert(self.network(record, portable=True), get_task(record.dataset)))


ENGINES = {"gluon": GluonEngine, "onnxruntime": OnnxRuntimeEngine}


def batch_size(context: mx.Context) -> int:
    """Images a call: on a CPU so few that a layer's maps stay in its caches, on a GPU so many that it is full."""
    return 50 if context.device_type == "cpu" else 500


def predictor(net: HybridBlock, context: mx.Context) -> Predict:
    """A network as a function of NumPy arrays: images (N, 3, 32, 32) in float32 to logits (N, outputs)."""
    net.hybridize(static_alloc=True, static_shape=True)

    def predict(images: np.ndarray) -> np.ndarray:
        return net(mx.nd.array(images, ctx=context)).asnumpy()

    return predict
