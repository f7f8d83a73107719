"""Packaging. Each dependency has its reason beside it; tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

# MXNet 1.9.1 is the last release; it runs on Python 3.9 to 3.11 with NumPy 1. Both builds install the same package:
# take one. The CPU build has wheels for Linux on x86-64 and Arm (not tried), and for macOS on Intel (not tried); the
# GPU build for Linux on x86-64. Elsewhere the extras bring nothing, and the commands say so.
X86 = 'python_version < "3.12" and platform_machine == "x86_64"'
ARM = 'python_version < "3.12" and sys_platform == "linux" and platform_machine == "aarch64"'
WHERE = f"({X86}) or ({ARM})"
LINUX = f'{X86} and sys_platform == "linux"'
MXNET_CPU = [f"mxnet==1.9.1; {WHERE}", f"numpy<2; {WHERE}"]
MXNET_GPU = [
    f"mxnet-cu112==1.9.1; {LINUX}",
    f"numpy<2; {LINUX}",
    # The CUDA 11 libraries that this build links to and does not bring; NVIDIA's driver is all that is left to a user.
    *(f"nvidia-{name}-cu11; {LINUX}" for name in ("cublas", "cuda-nvrtc", "cuda-runtime", "cufft", "curand")),
    *(f"nvidia-{name}-cu11; {LINUX}" for name in ("cusolver", "cusparse", "nccl", "nvtx")),
    f"nvidia-cudnn-cu11>=8.1,<9; {LINUX}",  # libcudnn.so.8
]
# It has no wheel for Windows with Python 3.9.
LITERT = 'ai-edge-litert>=2.1; python_version >= "3.10" or sys_platform != "win32"'
# The interpreter of microcontrollers, for the memory that a file needs: pre-releases alone, with one build.
MICRO = 'tflite-micro>=0.dev0; python_version == "3.11" and sys_platform == "linux" and platform_machine == "x86_64"'

setup(
    name="pydmobilenet",
    version=re.search(r'__version__ = "(.+)"', (HERE / "pydmobilenet/__init__.py").read_text(encoding="utf-8"))[1],
    description="PydMobileNet (Hoang and Jo, 2018): validate, train, classify, export",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    project_urls={
        "Paper": "https://arxiv.org/abs/1811.07083",
        "Authors' code and weights": "https://github.com/thanhhvnqb/pydmobilenet_mxnet",
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(9, 14)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    license="Apache-2.0",  # the text is in LICENSE
    license_files=["LICENSE"],
    # The recipes and the bundled checkpoints stay at the top of the repository; a wheel has them inside the package.
    packages=[*find_packages(include=["pydmobilenet*"]), "pydmobilenet.configs", "pydmobilenet.pretrained"],
    package_dir={"pydmobilenet.configs": "configs", "pydmobilenet.pretrained": "pretrained"},
    package_data={
        "pydmobilenet": [
            "catalog.csv",
            "py.typed",
            "reporting/*.css",
            "reporting/*.html.j2",
            # The page of `export --format web`; onnxruntime-web, 14 MB, is not in it.
            "web/*.html.j2",
            "web/*.css",
            "web/*.js",
            "data/imagenet_classes.txt",
            "data/digits.npz",
        ],
        "pydmobilenet.configs": ["*.yaml"],
        "pydmobilenet.pretrained": ["*.params", "manifest.json"],
    },
    entry_points={"console_scripts": ["pydmobilenet = pydmobilenet.cli:main"]},
    python_requires=">=3.9",
    install_requires=[
        "numpy>=1.21",
        "filelock",  # two processes that download the same file, or train the same run
        "jinja2>=3",  # the web page of the results: its template escapes whatever comes from data
        "matplotlib>=3.6",  # training curves
        "onnx>=1.16",  # ONNX files are written and checked by it
        "onnxruntime>=1.17",  # the engine of a small install
        "pillow>=10.1",  # folders of images; before, a TIFF's orientation was applied twice
        "platformdirs",  # the user's cache directory, on every system
        "psutil",  # free memory, and the processors of a process, on every system
        "pyyaml",  # the recipes in configs/
        "requests",  # downloads
        "safetensors",  # files of parameters that PyTorch, timm and Hugging Face read
        "tabulate",  # the tables
        "tqdm",  # progress bars
    ],
    extras_require={
        "cpu": MXNET_CPU,
        "gpu": MXNET_GPU,
        "torch": ["torch>=2.4"],  # the engine for today's GPUs, and for Python 3.12 and newer
        # Training curves: tensorboardX writes them; tensorboard shows them (60 MB more, and no TensorFlow).
        "tensorboard": ["tensorboardX>=2.6.5,<3", "tensorboard>=2.20"],
        "heic": ["pillow-heif>=0.16"],  # iPhones' pictures
        # Files for phones and microcontrollers: the classes of their schema, and an interpreter to check them (60 MB).
        "tflite": [LITERT, MICRO],
        "timm": ["timm>=1"],  # timm.create_model; brings PyTorch and torchvision
        # Run the notebooks in examples/, and open them: jupyterlab, as notebook is jupyterlab and more (110 MB).
        "notebook": ["nbclient", "ipykernel", "jupyterlab"],
        # make docs: MkDocs for the pages, pdoc for those of the API; the ways of both change between versions
        "docs": ["mkdocs>=1.6,<2", "pdoc>=15,<17"],
        "test": [
            LITERT,
            MICRO,
            "pytest",
            "setuptools>=70.1",  # builds a wheel by itself, for the test of what is in it
            "pytest-xdist",  # on all processors
            "ruff==0.17.6",  # its formatting changes by version
            'mypy==2.4.1; python_version >= "3.10"',  # what it finds changes by version too
            "types-PyYAML",
            "types-requests",
            "types-tabulate",
            "types-tqdm",
            f"gluoncv==0.10.5.post0; {X86}",  # the oracle of the Wide ResNets; brings OpenCV, whose dnn reads ours
            "pillow-heif>=0.16",
            "openvino",  # reads our ONNX files
            "playwright",  # drives the Chromium of this machine, for the page of `export --format web`
            "scikit-learn",  # whose copy of the digits ours is compared with
        ],
    },
)
