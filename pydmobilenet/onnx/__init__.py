"""ONNX files of networks, and ONNX Runtime to run them."""

import os

# ONNX Runtime 1.29 and later report to its maker and keep a device number below ~/.cache unless this is set before the
# import. A user's 0 is kept.
if not os.environ.get("ORT_DISABLE_TELEMETRY"):
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
