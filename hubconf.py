"""The published networks for ``torch.hub``: ``torch.hub.load(REPOSITORY, "pyd_concat_56_050", pretrained=True)``."""

from pydmobilenet.catalog import list_models as _list_models
from pydmobilenet.catalog import parse_name as _parse_name
from pydmobilenet.catalog import timm_name as _timm_name

dependencies = ["torch", "numpy", "filelock", "psutil", "requests", "safetensors"]


def _entrypoint(model):
    def create(pretrained=False, dataset="cifar10", **options):
        from pydmobilenet import pytorch

        return pytorch.get_model(model, dataset, pretrained=pretrained, **options)

    create.__name__ = _timm_name(_parse_name(model))
    create.__doc__ = f"""{model}: normalised images (N, 3, 32, 32) to logits (N, outputs), in evaluation mode.

    `dataset` is ``cifar10`` or ``cifar100-coarse`` (20 superclasses). `pretrained` loads the authors' weights, and
    downloads them if needed. `options` are ``classes``, ``weights`` and ``weights_dir`` of `pydmobilenet.get_model`.
    """
    return create


for _model in _list_models(dataset="cifar10"):
    _create = _entrypoint(_model)
    globals()[_create.__name__] = _create
