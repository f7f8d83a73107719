"""The reference engine, Apache MXNet's Gluon. Nothing else imports mxnet; this file does not either."""

# The families with a HybridBlock, which a user handles and which trains. Any network answers (`inference.unfused`).
FAMILIES = ("resnet", "mobilenet", "pyd-add", "pyd-concat", "wrn")
