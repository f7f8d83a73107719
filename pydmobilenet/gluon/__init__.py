"""Apache MXNet's Gluon, the reference engine. This file does not import mxnet."""

# The families with a HybridBlock: they train and are returned by get_model. Inference takes any network.
FAMILIES = ("resnet", "mobilenet", "pyd-add", "pyd-concat", "wrn")
