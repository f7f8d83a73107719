"""Packaging. Each dependency has its reason beside it; tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

# MXNet 1.9.1 is the last release. Both builds install the same package: one of them, never both.
MXNET_CPU = ["mxnet==1.9.1"]
MXNET_GPU = [
    "mxnet-cu112==1.9.1",
    # The CUDA 11 libraries that this build links to and does not bring; NVIDIA's driver is all that is left to a user.
    "nvidia-cublas-cu11",
    "nvidia-cuda-nvrtc-cu11",
    "nvidia-cuda-runtime-cu11",
    "nvidia-cudnn-cu11>=8.1,<9",  # libcudnn.so.8
    "nvidia-cufft-cu11",
    "nvidia-curand-cu11",
    "nvidia-cusolver-cu11",
    "nvidia-cusparse-cu11",
    "nvidia-nccl-cu11",
    "nvidia-nvtx-cu11",
]

setup(
    name="pydmobilenet",
    version=re.search(r'__version__ = "(.+)"', (HERE / "pydmobilenet/__init__.py").read_text(encoding="utf-8"))[1],
    description="PydMobileNet (Hoang and Jo, 2018) in Apache MXNet's Gluon",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",  # the text is in LICENSE
    license_files=["LICENSE"],
    packages=find_packages(include=["pydmobilenet*"]),
    package_data={
        "pydmobilenet": ["catalog.csv", "reporting/report.css", "reporting/report.html.j2", "data/imagenet_classes.txt"]
    },
    python_requires=">=3.9,<3.12",  # what MXNet 1.9.1 runs on
    install_requires=[
        "numpy>=1.21,<2",  # MXNet's own limit
        "filelock",  # two processes that download the same file, or train the same run
        "jinja2>=3",  # the web page of the results: its template escapes whatever comes from data
        "matplotlib>=3.6",  # training curves
        "pillow>=10.1",  # folders of images; before, a TIFF's orientation was applied twice
        "pyyaml",  # the recipes in configs/
        "requests",  # downloads; MXNet needs it too
        "tabulate",  # the tables
        "tqdm",  # progress bars
    ],
    extras_require={
        "cpu": MXNET_CPU,
        "gpu": MXNET_GPU,
        "wrn": ["gluoncv==0.10.5.post0"],  # the three Wide ResNets of the ImageNet32 table
        "digits": ["scikit-learn"],  # the data set `digits` is inside it
        "tensorboard": ["tensorboardX>=2.6.5,<3"],  # training curves in TensorBoard; brings no TensorFlow
        "onnx": ["onnx>=1.16", "onnxruntime>=1.17"],  # a way out of MXNet, and another engine; their C++ runs anywhere
        "notebook": ["nbclient", "ipykernel"],  # run examples/quickstart.ipynb, without Jupyter's own interface
        "docs": ["pdoc>=15,<17"],  # make docs; its templates and its ways change between versions
        "test": ["pytest", "pytest-xdist", "ruff==0.17.6"],  # on all processors; ruff's formatting changes by version
    },
)
