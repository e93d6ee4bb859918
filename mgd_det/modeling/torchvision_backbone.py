"""Backbones made from the classification networks of torchvision and timm, without code for any one of them.

torchvision's feature extraction traces a network into its single operations. The stages are found by the
sizes of what these return: `res2` to `res5` are the last features at the strides 4, 8, 16 and 32 that lie
outside the modules in which the next stride begins. In a ResNet this is the output of a stage, and in
MobileNets the narrow output of a block, as in timm's `features_only` networks (the wide layers by which a
block expands its input belong to that block). `res5` includes a last convolution before the pooling, as in
torchvision's detectors.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torchvision
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from mgd_det.detectron2_compat import BatchNorm
from mgd_det.errors import ConfigError, building_from_config

NAME_KEY = "MODEL.TORCHVISION.NAME"
TIMM_PREFIX = "timm/"
NORMS = ("FrozenBN", "BN")

# Unequal sides tell rows from columns and from channels.
PROBE_SIZE = (64, 96)
STRIDES = {"stem": 2, "res2": 4, "res3": 8, "res4": 16, "res5": 32}


class FeatureMap(NamedTuple):
    """The features that one operation of a network returns."""

    node: str  # torchvision's name of the operation, such as "features.3.add"
    stride: int
    channels: int


class TorchvisionBackbone(Backbone):
    """The stages of a classification network.

    The network itself is `network`, in which all parameters keep the names that they have in torchvision or
    timm; the parts behind the last stage are left out.

    Args:
        network: a convolutional network for RGB images in the normalisation of its library, for example
            `torchvision.models.get_model("mobilenet_v2")`.
        out_features: the names of the stages to return, of "res2" to "res5".
        freeze_at: freezes the first parts of the network: 1 those before stride 4 (there are none where the
            first module already leads to it, as in ConvNeXt), 2 also all that `res2` is computed by, and so
            on until 5. 0 freezes nothing.
        norm: "FrozenBN" freezes all batch norms; "BN" leaves them as the network has them. A frozen batch
            norm trains neither its parameters nor its statistics. Norms of other kinds stay as they are.

    Raises:
        ValueError: the network cannot be traced, has no such stages, or `norm` is unknown.
    """

    @configurable
    def __init__(
        self,
        *,
        network: nn.Module,
        out_features: Sequence[str],
        freeze_at: int = 0,
        norm: str = "FrozenBN",
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"norm {norm!r} is not one of {list(NORMS)}")
        stages = find_stages(network)
        missing = [name for name in out_features if name not in stages or name == "stem"]
        if missing:
            found = [name for name in stages if name != "stem"]
            raise ValueError(f"{type(network).__name__} has no stages {missing}; found were {found}")
        self.network = _extractor(network, {stages[name].node: name for name in out_features})
        for name in list(STRIDES)[:freeze_at]:
            if name in stages:
                _extractor(network, {stages[name].node: name}).requires_grad_(False)
        if norm == "FrozenBN":
            for module in self.modules():
                if isinstance(module, BatchNorm):
                    module.requires_grad_(False)
        self._out_features = list(out_features)
        self._out_feature_channels = {name: stages[name].channels for name in out_features}
        self._out_feature_strides = {name: stages[name].stride for name in out_features}
        self.train()

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        if input_shape.channels != 3:
            problem = f"images of {input_shape.channels} channels, and {NAME_KEY} names a network for 3"
            raise ConfigError("MODEL.PIXEL_MEAN", cfg.MODEL.PIXEL_MEAN, problem, "Give three numbers.")
        node = cfg.MODEL.TORCHVISION
        return {
            "network": build_network(node.NAME),
            "out_features": node.OUT_FEATURES,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
            "norm": node.NORM,
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Returns the stages' features by name, (N, C, H, W), for images (N, 3, H, W)."""
        return self.network(x)

    def train(self, mode: bool = True) -> TorchvisionBackbone:
        super().train(mode)
        for module in self.modules():
            # Not converted to Detectron2's FrozenBatchNorm2d, which lacks the activations that timm's have.
            if isinstance(module, BatchNorm) and not any(p.requires_grad for p in module.parameters()):
                module.eval()
        return self


def build_network(name: str) -> nn.Module:
    """Returns a classification network with random weights.

    Args:
        name: a name of `torchvision.models.list_models`, or "timm/" and one of `timm.list_models`.

    Raises:
        ConfigError: there is no such network, or timm is not installed.
    """
    if name.startswith(TIMM_PREFIX):
        if importlib.util.find_spec("timm") is None:
            problem, remedy = "the Python package timm is not installed", "Install it: pip install timm."
            raise ConfigError(NAME_KEY, name, problem, remedy)
        timm = importlib.import_module("timm")
        known, build = timm.list_models(), timm.create_model
    else:
        known = torchvision.models.list_models(module=torchvision.models)
        build = torchvision.models.get_model
    wanted = name.removeprefix(TIMM_PREFIX)
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, n=3) or ["mobilenet_v2"]
        problem = "no classification network has this name"
        raise ConfigError(NAME_KEY, name, problem, f"Names are, for example, {', '.join(near)}.")
    return build(wanted)


def find_stages(network: nn.Module) -> dict[str, FeatureMap]:
    """Returns where the stages of a network end, by the names of `STRIDES`, as far as it has them.

    The network is traced, and run once on a black image.

    Raises:
        ValueError: it cannot be.
    """
    try:
        maps = _feature_maps(network)
    except Exception as error:  # its code can raise anything
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise ValueError(
            f"torchvision's feature extraction cannot trace {type(network).__name__}, or it does not run on "
            f"images of {PROBE_SIZE[0]} x {PROBE_SIZE[1]} ({type(error).__name__}: {reason})"
        ) from error
    stages = {}
    for name, stride in STRIDES.items():
        inside = [found for found in maps[: _end(maps, stride)] if found.stride == stride]
        if inside:
            stages[name] = inside[-1]
    return stages


def _end(maps: Sequence[FeatureMap], stride: int) -> int:
    """Returns the index behind a stage, at which the module that leads from its stride to the next begins.

    It is the outermost one that contains no other strides.
    """
    found = next((found for found in maps if found.stride > stride), None)
    if found is None:
        return len(maps)
    parts = found.node.split(".")
    for depth in range(1, len(parts)):
        module = ".".join([*parts[:depth], ""])
        inside = [number for number, m in enumerate(maps) if m.node.startswith(module)]
        if {maps[number].stride for number in inside} <= {stride, found.stride}:
            return inside[0]
    return maps.index(found)


def _feature_maps(network: nn.Module) -> list[FeatureMap]:
    """Returns all features (1, C, H, W) of a network in the order in which they are computed."""
    in_training, in_eval = get_graph_node_names(network, _tracing(network), suppress_diff_warning=True)
    names = [name for name in in_eval if name in set(in_training)]
    extractor = _extractor(network, {name: name for name in names}).eval()
    with torch.no_grad():
        outputs = extractor(torch.zeros(1, 3, *PROBE_SIZE))
    maps = []
    for name in names:
        features = outputs[name]
        if isinstance(features, Tensor) and features.dim() == 4 and features.shape[2]:
            stride = PROBE_SIZE[0] // features.shape[2]
            if (stride * features.shape[2], stride * features.shape[3]) == PROBE_SIZE:
                maps.append(FeatureMap(name, stride, features.shape[1]))
    return maps


def _extractor(network: nn.Module, nodes: dict[str, str]) -> nn.Module:
    """Returns the part of a network that computes some nodes, which returns them under the names given."""
    return create_feature_extractor(
        network, nodes, tracer_kwargs=_tracing(network), suppress_diff_warning=True
    )


def _tracing(network: nn.Module) -> dict[str, object]:
    """Returns options of the tracer by which norms of all classes stay modules.

    Batch norms need their mode, and the optimiser finds all norms by their classes.
    """
    norms = (BatchNorm, nn.LayerNorm, nn.GroupNorm)
    return {"leaf_modules": list({type(m) for m in network.modules() if isinstance(m, norms)})}


@BACKBONE_REGISTRY.register()
def build_torchvision_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TorchvisionBackbone:
    """Returns the network of `MODEL.TORCHVISION` without an FPN.

    Raises:
        ConfigError: there is no such network, or no backbone can be made from it.
    """
    with building_from_config(NAME_KEY, cfg.MODEL.TORCHVISION.NAME):
        return TorchvisionBackbone(cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_torchvision_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Returns the network of `MODEL.TORCHVISION` with an FPN for R-CNNs, whose last level is a pooled one."""
    return _with_fpn(cfg, build_torchvision_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_torchvision_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Returns the network of `MODEL.TORCHVISION` with RetinaNet's FPN, whose p6 and p7 come from `res5`."""
    bottom_up = build_torchvision_backbone(cfg, input_shape)
    channels = bottom_up.output_shape()["res5"].channels
    return _with_fpn(cfg, bottom_up, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS))


def _with_fpn(cfg: CfgNode, bottom_up: Backbone, top_block: nn.Module) -> FPN:
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
