"""Register the networks for ``timm.create_model``.

Published networks are named like ``pyd_concat_56_050``. ``pretrained=True`` loads the authors' weights for CIFAR-10, or
with the tag ``.cifar100-coarse`` those for CIFAR-100's 20 superclasses. Any other network is ``pydmobilenet`` with a
``name``. ``local-dir:DIRECTORY`` loads an export in Hugging Face's layout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from timm.layers import DropPath, SelectAdaptivePool2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, resolve_pretrained_cfg
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from .. import catalog, checkpoints, machine, network
from ..catalog import list_models, parse_name, timm_name
from ..data import get_task
from ..data.dataset import check_image_size
from ..errors import hinted, unknown
from ..huggingface import ANY_NETWORK, pretrained_cfg
from .network import Add, GlobalAveragePool, Network, initialize

TAGS = ("cifar10", "cifar100-coarse")  # data sets with the same networks, the default first
NAMES = {timm_name(parse_name(model)): model for model in list_models(dataset=TAGS[0])}
POOLS = ("avg", "max", "avgmax")


class DropPathAdd(Add):
    """Sum with stochastic depth: training drops the first input of some images."""

    def __init__(self, rate: float):
        super().__init__()
        self.drop_path = DropPath(rate)

    def forward(self, total: Tensor, *others: Tensor) -> Tensor:
        return super().forward(self.drop_path(total), *others)


class TimmNetwork(Network):
    """A network with timm's interface. `drop_rate` is for pooled features, `drop_path_rate` for the last block."""

    def __init__(self, description: network.Network, drop_rate: float = 0.0, drop_path_rate: float = 0.0):
        super().__init__(description)
        self.drop_rate = drop_rate
        blocks: dict[str, Any] = {
            name: module for name, module in self.named_modules() if isinstance(getattr(module, "add", None), Add)
        }
        self.residual_blocks = list(blocks)
        for index, block in enumerate(blocks.values() if drop_path_rate else ()):
            block.add = DropPathAdd(drop_path_rate * index / max(1, len(blocks) - 1))
        shapes = description.shapes()
        stages = {name.rpartition(".")[0]: shapes[f"{name}.add"] for name in blocks}  # the last block's shape
        self.feature_info = [
            {"num_chs": channels, "reduction": 32 // height, "module": stage}
            for stage, (channels, height, _) in stages.items()
        ]
        self.set_pool("avg")

    def set_pool(self, kind: str) -> None:
        """Use timm's pooling, or none with "" (only without classes)."""
        if kind not in (POOLS if self.num_classes else (*POOLS, "")):
            raise unknown("global_pool", kind, POOLS)
        pool: nn.Module = GlobalAveragePool()
        if kind != "avg" or self.drop_rate:
            pool = nn.Sequential(SelectAdaptivePool2d(pool_type=kind, flatten=bool(kind)), nn.Dropout(self.drop_rate))
        parent, _, name = self.description.layers[-1].inputs[0].rpartition(".")
        setattr(self.get_submodule(parent), name, pool)
        self.global_pool = kind

    @property
    def head_hidden_size(self) -> int:
        return self.num_features

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        super().reset_classifier(num_classes)
        self.set_pool(self.global_pool if global_pool is None else global_pool)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the last map and the maps of stages, which have no norm."""
        if output_fmt != "NCHW":
            raise unknown("output_fmt", output_fmt, ("NCHW",))
        stages = [str(info["module"]) for info in self.feature_info]
        maps: dict[str, Tensor] = {}
        for step in self.body:
            names = [f"{step.name}.{name}" for name, _ in self.get_submodule(step.name).named_children()]
            for name in [step.name] if stages[0] not in names else names:
                x = maps[name] = self.get_submodule(name)(x)
        chosen = [maps[stages[index]] for index in feature_take_indices(len(stages), indices)[0]]
        return chosen if intermediates_only else (x, chosen)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks for their gradients, in less memory. As in timm, running statistics see each batch twice."""
        for name in self.residual_blocks:
            self.get_submodule(name).grad_checkpointing = enable  # type: ignore[assignment]

    def no_weight_decay(self) -> set[str]:
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks = r"^(?:stages|features)\.(\d+)\."
        fine = [(rf"{blocks}(\d+)\.", None), (r"^(?:head|features\.6|output)\.", (99999,))]
        return {"stem": r"^(?:stem|features\.[0-2])\.", "blocks": blocks if coarse else fine}


@hinted
def make_network(
    name: str,
    dataset: str,
    num_classes: int,
    in_chans: int = 3,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    global_pool: str = "avg",
    img_size: int | tuple[int, int] = 32,
) -> TimmNetwork:
    """Build a network with random parameters; with 0 classes, it returns pooled features."""
    for size in (img_size,) if isinstance(img_size, int) else img_size:
        check_image_size(size)
    description = catalog.describe(name, dataset, num_classes or 1)
    machine.check_memory(name, description.complexity().parameters)
    norm, conv, *others = description.layers
    first: list[Any] = [norm, conv]
    layers = replace(first[0], channels=in_chans), replace(first[1], in_channels=in_chans), *others
    net = TimmNetwork(network.Network(layers), drop_rate, drop_path_rate)
    initialize(net)
    if num_classes == 0:
        net.reset_classifier(0)
    net.set_pool(global_pool)
    return net


def _adapted(state: dict[str, Tensor], net: TimmNetwork) -> dict[str, Tensor]:
    """Adapt the first norm to other channels than RGB; timm adapts the first convolution."""
    norm: Any = net.description.layers[0]
    names = [name for name in state if name.startswith(f"{norm.name}.") and state[name].ndim and norm.channels != 3]
    return {**state, **{name: state[name].mean().repeat(norm.channels) for name in names}}


def _create(variant: str, pretrained: bool, name: str, dataset: str | None = None, **options: Any) -> nn.Module:
    """Build a network, with the weights of its `pretrained_cfg`, else the published ones."""
    overrides = (options.pop(key, None) for key in ("pretrained_cfg", "pretrained_cfg_overlay"))
    resolved = resolve_pretrained_cfg(variant, *overrides)
    cfg, task = resolved.to_dict(), dataset or resolved.tag or TAGS[0]
    published = pretrained and not (resolved.has_weights or resolved.state_dict)
    if published:  # without the head's for another number of classes
        arrays = checkpoints.resolve(name, task, options.get("num_classes") or None, pretrained=True).arrays()
        cfg["state_dict"] = {key: torch.tensor(array) for key, array in arrays.items()}
    net = build_model_with_cfg(
        lambda **arguments: make_network(name, task, **arguments),
        variant,
        pretrained,
        cfg,
        feature_cfg={"out_indices": (0, 1, 2), "feature_cls": "getter"},
        pretrained_strict=not published,  # checked already
        pretrained_filter_fn=_adapted,
        **options,
    )
    net.pretrained_cfg.pop("state_dict", None)
    return net


def _entrypoint(variant: str, model: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        return _create(variant, pretrained, model, **options)

    create.__name__ = variant
    create.__doc__ = f"{model}: normalised images (N, 3, 32, 32) to logits (N, num_classes)."
    return create


@register_model
def pydmobilenet(pretrained: bool = False, name: str = "", dataset: str = TAGS[0], **options: Any) -> nn.Module:
    """Build any network by `name`, as ``pyd-add-83-0.6``, for a data set."""
    if not options.get("pretrained_cfg"):
        options["pretrained_cfg"] = pretrained_cfg(catalog.describe(name, dataset), get_task(dataset))
    return _create(ANY_NETWORK, pretrained, name, dataset, **options)


default_cfgs = generate_default_cfgs(
    {
        f"{variant}.{tag}": pretrained_cfg(catalog.describe(model, tag), get_task(tag))
        for variant, model in NAMES.items()
        for tag in TAGS
    }
)
for _variant, _model in NAMES.items():
    register_model(_entrypoint(_variant, _model))
