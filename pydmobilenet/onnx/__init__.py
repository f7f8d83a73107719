"""ONNX files from a network's description, and ONNX Runtime, which runs them."""

import os

# From about version 1.29 on, ONNX Runtime reports to its maker, and keeps a device's number below ~/.cache, unless this
# is set before its import. Whoever has set it to 0 wants that.
if not os.environ.get("ORT_DISABLE_TELEMETRY"):
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
