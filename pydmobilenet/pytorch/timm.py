"""The networks for ``timm.create_model``: importing this module registers them.

A published network has its own name, as ``pyd_concat_56_050``. ``pretrained=True`` loads the authors' weights as
`pydmobilenet.get_model` does: those for CIFAR-10, or with the tag ``pyd_concat_56_050.cifar100-coarse`` those for the
20 superclasses of CIFAR-100. Any other network is ``pydmobilenet`` with its ``name``. What ``pydmobilenet export
--format huggingface`` has written is ``local-dir:DIRECTORY``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, resolve_pretrained_cfg
from torch import nn

from .. import checkpoints, zoo
from ..catalog import list_models, parse_name, timm_name
from ..data import get_task
from ..errors import InvalidValueError
from ..huggingface import ANY_NETWORK, pretrained_cfg
from .network import Classifier, build, initialize, set_arrays

TAGS = ("cifar10", "cifar100-coarse")  # the data sets whose networks are alike; the first one's are the default
NAMES = {timm_name(parse_name(model)): model for model in list_models(dataset=TAGS[0])}


def _make(name: str, dataset: str, num_classes: int, in_chans: int = 3) -> Classifier:
    """A network with random parameters; with 0 classes, of pooled features."""
    if in_chans != 3:
        raise InvalidValueError(f"in_chans is {in_chans} (allowed: 3)")
    net = build(parse_name(name), num_classes or 1, zoo.widths(dataset))
    initialize(net)
    if num_classes == 0:
        net.reset_classifier(0)
    return net


def _create(variant: str, pretrained: bool, name: str, dataset: str | None = None, **options: Any) -> nn.Module:
    """The network of a name, with the weights of the place that its `pretrained_cfg` names, else with ours."""
    given = (options.pop(key, None) for key in ("pretrained_cfg", "pretrained_cfg_overlay"))
    cfg = resolve_pretrained_cfg(variant, *given)
    dataset = dataset or cfg.tag or TAGS[0]
    of_timm = pretrained and bool(cfg.has_weights or cfg.state_dict)
    net = build_model_with_cfg(
        lambda **arguments: _make(name, dataset, **arguments), variant, of_timm, cfg.to_dict(), **options
    )
    if pretrained and not of_timm:
        _load(net, name, dataset, options.get("num_classes") or None)
    return net


def _load(net: nn.Module, name: str, dataset: str, classes: int | None) -> None:
    """Load the published weights; where so many classes are asked for, perhaps without those of the head."""
    arrays = checkpoints.resolve(name, dataset, classes, pretrained=True).arrays
    set_arrays(net, {key: array for key, array in arrays.items() if key in net.state_dict()})


def _entrypoint(variant: str, model: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        return _create(variant, pretrained, model, **options)

    create.__name__ = variant
    create.__doc__ = f"{model}: normalised images (N, 3, 32, 32) to logits (N, num_classes)."
    return create


@register_model
def pydmobilenet(pretrained: bool = False, name: str = "", dataset: str = TAGS[0], **options: Any) -> nn.Module:
    """Any network, by its `name`, as ``pyd-add-83-0.6``, in its form for a data set."""
    if not options.get("pretrained_cfg"):
        options["pretrained_cfg"] = pretrained_cfg(zoo.describe(name, dataset), get_task(dataset))
    return _create(ANY_NETWORK, pretrained, name, dataset, **options)


default_cfgs = generate_default_cfgs(
    {
        f"{variant}.{tag}": pretrained_cfg(zoo.describe(model, tag), get_task(tag))
        for variant, model in NAMES.items()
        for tag in TAGS
    }
)
for _variant, _model in NAMES.items():
    register_model(_entrypoint(_variant, _model))
