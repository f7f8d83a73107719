"""Write a network as a directory in Hugging Face's layout: ``config.json``, ``model.safetensors``, model card.

``timm.create_model("local-dir:DIRECTORY", pretrained=True)`` reads it once `pydmobilenet.pytorch.timm` is imported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from . import catalog, files
from .catalog import Record
from .checkpoints import Checkpoint, formats
from .data import Task
from .files import PRETRAINED
from .network import Convolution, Network
from .text import printable

FORMAT = "huggingface"
TASK = "image-classification"
CONFIG, WEIGHTS, CARD = "config.json", formats.MODEL_FILE, "README.md"
ANY_NETWORK = "pydmobilenet"  # timm's name for an unpublished network, given by `model_args`
AUTHORS = "https://github.com/thanhhvnqb/pydmobilenet_mxnet"
# The Hub's names of data sets; of a folder the name of its loader.
HUB = {"cifar10": "uoft-cs/cifar10", "folder": "imagefolder"}
HUB.update(dict.fromkeys(("cifar100", "cifar100-coarse"), "uoft-cs/cifar100"))


def write(source: Checkpoint, directory: Path) -> None:
    """Write a network's files into a directory. Raises as `Checkpoint.arrays`."""
    contents: dict[str, str | bytes] = {
        CONFIG: json.dumps(config(source), indent=2) + "\n",
        WEIGHTS: formats.dump_safetensors(state_dict(source.arrays()), source.metadata()),
        CARD: card(source),
    }
    files.write_together({directory / name: content for name, content in contents.items()})


def state_dict(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return parameters under PyTorch's names: by others, Transformers would draw the batch norms at random."""
    names = {"gamma": "weight", "beta": "bias"}
    parts = {name: name.rpartition(".") for name in arrays}
    return {f"{owner}.{names.get(kind, kind)}": arrays[name] for name, (owner, _, kind) in parts.items()}


def config(source: Checkpoint) -> dict[str, Any]:
    """Return the content of ``config.json`` for timm."""
    network, task = source.network, source.task
    name, wide = catalog.timm_name(catalog.parse_name(source.model)), task.name == "imagenet32"
    known = catalog.find(source.model, "cifar10") and not wide
    arguments = {"name": source.model, **({"dataset": task.name} if wide else {})}
    return {
        "architecture": name if known else ANY_NETWORK,
        "num_classes": network.outputs,
        "num_features": network.head.in_features,
        "label_names": [task.class_name(label) for label in range(network.outputs)],
        **({} if known else {"model_args": arguments}),
        "pretrained_cfg": pretrained_cfg(network, task),
    }


def pretrained_cfg(network: Network, task: Task) -> dict[str, Any]:
    """Return timm's description of a network: the form of its images, its first and last layer."""
    first = next(layer for layer in network.layers if isinstance(layer, Convolution))
    return {
        "num_classes": network.outputs,
        "input_size": list(task.image),
        "pool_size": [task.image_size // 4] * 2,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": list(task.mean),
        "std": list(task.std),
        "first_conv": first.name,
        "classifier": network.head.name,
    }


def card(source: Checkpoint) -> str:
    """Return the model card in Markdown: network, error, owner, use."""
    record = source.origin or (source if source.top1_error is not None else None)
    task = source.task
    counts = source.network.complexity(task.image)
    millions = counts.multiply_adds / 1e6
    classes = ", ".join(map(printable, task.classes))
    return f"""---
{yaml.safe_dump(metadata(source, record), sort_keys=False, allow_unicode=True)}---

# {source.model} for {printable(task.title)}

A network of PydMobileNet (Hoang and Jo, 2018, [arXiv 1811.07083](https://arxiv.org/abs/1811.07083)): images of
{task.image_size}x{task.image_size} pixels to {source.network.outputs} logits, by {counts.parameters:,} parameters and \
{millions:.1f} million multiply-adds.

- Error: {_error(record if source.top1_error is not None else None)}
- Weights: {_owner(record)}
- Pixels: scaled to [0, 1], less {list(task.mean)}, by {list(task.std)} (red, green, blue)
- Classes: {classes or "not named"}

## Use

With pydmobilenet installed, and this directory as DIRECTORY:

```python
import timm
import pydmobilenet.pytorch.timm  # registers the networks

net = timm.create_model("local-dir:DIRECTORY", pretrained=True)
```

```
pydmobilenet predict IMAGE --weights DIRECTORY
```
"""


def metadata(source: Checkpoint, record: Record | None) -> dict[str, Any]:
    """Return the card's metadata, with the accuracy by `record` as ``model-index`` (`huggingface_hub.EvalResult`).

    ``.eval_results`` is not written: its data sets have to be benchmarks of the Hub, and these are none.
    """
    values: dict[str, Any] = {"library_name": "timm", "pipeline_tag": TASK}
    if _is_bundled(record):
        values["license"] = "apache-2.0"
    values["tags"] = [TASK, "timm", "pydmobilenet"]
    if record is None or source.top1_error is None:
        return values
    kind = source.task.name.partition(":")[0]
    result = {
        "task": {"type": TASK, "name": "Image Classification"},
        "dataset": {"name": printable(source.task.title), "type": HUB.get(kind, kind), "split": _split(record)},
        "metrics": [{"type": "accuracy", "value": round(1 - source.top1_error / 100, 6), "name": "Accuracy"}],
        **({"source": {"name": "published by the authors", "url": AUTHORS}} if record.published else {}),
    }
    return {**values, "metrics": ["accuracy"], "model-index": [{"name": source.model, "results": [result]}]}


def _split(record: Record) -> str:
    return "validation" if isinstance(record, Checkpoint) and record.split == "val" else "test"


def _is_bundled(record: Record | None) -> bool:
    return record is not None and record.path is not None and record.path.parent == PRETRAINED


def _error(record: Record | None) -> str:
    if record is None or record.top1_error is None:
        return "not known"
    if record.published:
        return f"{record.top1_error:.2f} % of the test images ({record.labels}), as published"
    return f"{record.top1_error:.2f} % of the {_split(record)} images, measured when it was trained"


def _owner(record: Record | None) -> str:
    if record is None:
        return "of a file whose origin is not known"
    if record.published:
        return f"the authors' ([{AUTHORS.rpartition('/')[2]}]({AUTHORS})), under their terms"
    return "trained with pydmobilenet" + (", and part of it" if _is_bundled(record) else "")
