"""ONNX files from a network's description, and ONNX Runtime, which runs them."""
