"""Taps inside detection heads: the features before the classifier, and the predictions.

A dense head (RetinaNet, FCOS) gives one map for each level. In a two-stage detector these are taps of the box
head, and the teacher's is run on the student's sampled proposals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any, Callable, NamedTuple, Union

import torch
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.meta_arch.rcnn import GeneralizedRCNN
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.modeling.roi_heads import CascadeROIHeads, RROIHeads, StandardROIHeads
from detectron2.structures import Boxes
from torch import Tensor, nn

from mgd_det.detectron2_types import BatchedInputs
from mgd_det.errors import UnknownTap
from mgd_det.maths.foreground import class_confidence
from mgd_det.maths.moments import with_moments_of
from mgd_det.maths.resizing import Resizing
from mgd_det.methods import (
    CLASS_MAPS,
    CONFIDENCE,
    CROSS_PREDICTIONS,
    HEAD,
    HEAD_TAPS,
    PREDICTIONS,
    BoxMeaning,
    FeaturesOfTap,
    HeadInfo,
    Prediction,
    PredictionPair,
    TapFeatures,
    TapInfo,
)

from .pairing import common_size, pair_maps, unpadded_mask

HALF_WAY = "half_way"  # a :class:`HalfWay`, which comes with `CROSS_PREDICTIONS`
TEACHERS_HEAD = "head_of_teacher"  # the DenseHead that a teacher's predictions come from
PROPOSALS = "proposals"  # boxes of a two-stage student's proposals, which the teacher's head is run on
BOX_CODING = ("weights", "scale_clamp", "normalize_by_size")  # attributes of Detectron2's box transforms

# Output of one forward pass by tap: (N, C, H, W) of the backbone. A dense head gives a list of these for
# `HEAD` and `CLASS_MAPS`, for `PREDICTIONS` lists by level of scores, boxes and, of FCOS, centerness, and as
# a teacher's for `CONFIDENCE` a map (N, 1, H, W) by the stride of the level. A box head gives (R, C) for
# `HEAD`, (scores, boxes) for `PREDICTIONS`, and for `PROPOSALS` the (R, 4) boxes of each image.
Captured = MutableMapping[str, Any]


class HalfWay(NamedTuple):
    """Features half-way through the two subnets of a dense head: the input of the last but one activation.

    With a single convolution, that of the only one.
    """

    classes: list[Tensor]  # (N, C, H, W) of each level
    boxes: list[Tensor]


Hook = Callable[..., None]  # takes a module, its arguments and its output


class DenseHead:
    """The head of RetinaNet or FCOS."""

    def __init__(self, detector: RetinaNet | FCOS) -> None:
        self.detector, self.head = detector, detector.head
        shapes = detector.backbone.output_shape()
        self.in_features: Sequence[str] = detector.head_in_features
        self.strides = [shapes[name].stride for name in self.in_features]

    def info(self, tap: str = HEAD) -> TapInfo:
        """Returns the properties of a tap in it.

        Raises:
            UnknownTap: the head is of layers among which there is no such tap.
        """
        if tap == CROSS_PREDICTIONS:
            for subnet in (self.head.cls_subnet, self.head.bbox_subnet):
                _half(subnet)
        detector, weight = self.detector, self.head.cls_score.weight
        return TapInfo(
            channels=weight.shape[1],
            stride=self.strides,
            trainable=_trainable(detector.backbone, self.head),
            head=HeadInfo(
                kind="points" if isinstance(detector, FCOS) else "anchors",
                num_classes=detector.num_classes,
                boxes=BoxMeaning(
                    coding=_coding(detector.box2box_transform),
                    anchors=[cell.tolist() for cell in detector.anchor_generator.cell_anchors],
                    anchor_offset=detector.anchor_generator.offset,
                ),
                classifier_std=weight.detach().float().std().item(),
                softmax=False,
            ),
        )

    @contextmanager
    def capture(self, taps: Sequence[str]) -> Iterator[Captured]:
        """While active, a forward pass of the head fills the yielded dict."""
        maps: list[Tensor] = []
        half_way = HalfWay([], [])
        classes: list[Tensor] = []
        found: dict[str, object] = {HEAD: maps, CLASS_MAPS: classes, HALF_WAY: half_way}

        def appending_to(levels: list[Tensor]) -> Hook:
            return lambda module, args, output: levels.append(output)

        hooks: dict[str, list[tuple[nn.Module, Hook]]] = {
            HEAD: [(self.head.cls_subnet, appending_to(maps))],
            CLASS_MAPS: [(self.head.cls_score, appending_to(classes))],
            PREDICTIONS: [(self.head, lambda module, args, output: found.update({PREDICTIONS: output}))],
        }
        if CROSS_PREDICTIONS in taps:
            hooks[CROSS_PREDICTIONS] = [
                (subnet[_half(subnet) - 1], appending_to(levels))
                for subnet, levels in zip((self.head.cls_subnet, self.head.bbox_subnet), half_way)
            ]
        with _hooked([hook for tap in taps for hook in hooks[tap]]):
            yield found

    def run(
        self,
        features: Mapping[str, Tensor],
        taps: Sequence[str],
        student: Captured,
        resizing: Resizing | None = None,
    ) -> Captured:
        """Runs as much of the head as the taps need.

        Args:
            features: the backbone's outputs.
            taps: names of taps in the head.
            student: not used; see :meth:`ProposalHead.run`.
            resizing: of the images that the features were computed from; None: they have their full size.
                What is returned belongs to the full size, except for what :func:`needs_full_size` names.
        """
        maps = [features[name] for name in self.in_features]
        whole = PREDICTIONS in taps or CROSS_PREDICTIONS in taps
        if whole:
            wanted = {PREDICTIONS, *taps} - {CONFIDENCE}
            with self.capture(list(wanted)) as found:
                self.head(maps)
            found[TEACHERS_HEAD] = self
        else:
            found = {HEAD: [self.head.cls_subnet(x) for x in maps]}
            if not {CLASS_MAPS, CONFIDENCE}.isdisjoint(taps):
                found[CLASS_MAPS] = [self.head.cls_score(x) for x in found[HEAD]]
        if CONFIDENCE in taps:
            scores = found[PREDICTIONS][0] if whole else found[CLASS_MAPS]
            found[CONFIDENCE] = dict(zip(self.strides, map(class_confidence, scores)))
        if resizing is not None and HEAD in found:
            found[HEAD] = [resizing.features(x, stride) for x, stride in zip(found[HEAD], self.strides)]
        return found

    def pair(
        self, tap: str, student: Captured, teacher: Captured, batched_inputs: BatchedInputs
    ) -> FeaturesOfTap:
        """Returns a method's features at a tap in the head. This head is the student's."""
        images = [x["image"] for x in batched_inputs]
        if tap == CROSS_PREDICTIONS:
            head: DenseHead = teacher[TEACHERS_HEAD]
            normalizer = getattr(self.detector, "loss_normalizer", None)  # which its loss has just updated
            return head.cross(student[HALF_WAY], teacher, images)._replace(normalizer=normalizer)
        if tap == PREDICTIONS:
            return self._pair_predictions(student[PREDICTIONS], teacher[PREDICTIONS], images)
        maps = student[tap]
        # Class scores count everywhere. The features before them count where an anchor is not ignored.
        counts = self._labelled(maps, batched_inputs) if tap == HEAD else [None] * len(maps)
        levels = zip(maps, teacher[tap], self.strides, counts)
        return [pair_maps(s, t, images, stride, counts=c) for s, t, stride, c in levels]

    def cross(self, student: HalfWay, own: Captured, images: Sequence[Tensor]) -> PredictionPair:
        """Returns what this head, the teacher's, predicts from a student's features, and its own predictions.

        The student's features are given the mean and deviation that this head's have there. Sizes that differ
        are cut to the common one.

        Args:
            student: half-way through the student's head.
            own: what :meth:`run` has returned for the same images.
            images: (C, h, w) each, before padding.
        """
        half_way: HalfWay = own[HALF_WAY]
        crossed: tuple[list[Tensor], list[Tensor]] = ([], [])
        layers = (self.head.cls_subnet, self.head.cls_score), (self.head.bbox_subnet, self.head.bbox_pred)
        for ours, theirs, predictions, (subnet, last) in zip(student, half_way, crossed, layers):
            rest = subnet[_half(subnet) :]
            for x, y, stride in zip(ours, theirs, self.strides):
                height, width = common_size(x, y)
                x, y = x[..., :height, :width], y[..., :height, :width]
                mask = unpadded_mask(images, stride, height, width)
                predictions.append(last(rest(with_moments_of(x, y, mask))))
        pair = self._pair_predictions(crossed, own[PREDICTIONS][:2], images)
        return pair._replace(
            student=self._decoded(pair.student, crossed[0]), teacher=self._decoded(pair.teacher, crossed[0])
        )

    def _decoded(self, prediction: Prediction, maps: Sequence[Tensor]) -> Prediction:
        """Returns a prediction with its boxes decoded; the maps have its levels' sizes."""
        anchors = [level.tensor for level in self.detector.anchor_generator(maps)]
        rows = torch.cat([level.repeat(len(maps[0]), 1) for level in anchors])
        return prediction._replace(boxes=self.detector.box2box_transform.apply_deltas(prediction.boxes, rows))

    def _labelled(self, maps: Sequence[Tensor], batched_inputs: BatchedInputs) -> list[Tensor | None]:
        """Returns for each level (N, 1, H, W), True where a position has an anchor that is not ignored."""
        if not isinstance(self.detector, RetinaNet):  # FCOS ignores none
            return [None] * len(maps)
        instances = [x["instances"].to(self.detector.device) for x in batched_inputs]
        labels, _ = self.detector.label_anchors(self.detector.anchor_generator(maps), instances)
        sizes = [x.shape[2:] for x in maps]
        anchors = self.detector.anchor_generator.num_anchors
        used = (torch.stack(labels) >= 0).split([h * w * a for (h, w), a in zip(sizes, anchors)], dim=1)
        return [level.view(-1, 1, h, w, a).any(-1) for level, (h, w), a in zip(used, sizes, anchors)]

    def _pair_predictions(
        self,
        student: Sequence[Sequence[Tensor]],
        teacher: Sequence[Sequence[Tensor]],
        images: Sequence[Tensor],
    ) -> PredictionPair:
        widths = [self.detector.num_classes, 4, 1]  # of scores, boxes and centerness, for each anchor
        rows: tuple[list[list[Tensor]], list[list[Tensor]]] = ([], [])
        masks, padded = [], False
        for stride, *maps in zip(self.strides, *student, *teacher):
            height, width = common_size(*maps)
            mask = unpadded_mask(images, stride, height, width)
            padded |= mask is not None
            if mask is None:
                mask = maps[0].new_ones((len(images), 1, height, width), dtype=torch.bool)
            anchors = maps[1].shape[1] // 4
            masks.append(mask.flatten(1).repeat_interleave(anchors, 1).flatten())
            maps = [x[..., :height, :width].contiguous() for x in maps]
            for network, outputs in zip(rows, (maps[: len(student)], maps[len(student) :])):
                network.append([permute_to_N_HWA_K(x, k).flatten(0, 1) for x, k in zip(outputs, widths)])
        return PredictionPair(_joined(rows[0]), _joined(rows[1]), torch.cat(masks) if padded else None)


def _joined(levels: Sequence[Sequence[Tensor]]) -> Prediction:
    """Joins the rows of all levels; each gives scores, boxes and, of FCOS, centerness."""
    scores, boxes, *centerness = (torch.cat(outputs) for outputs in zip(*levels))
    return Prediction(scores, boxes, centerness[0].flatten() if centerness else None)


class ProposalHead:
    """The box head of Faster or Mask R-CNN, for R proposals."""

    def __init__(self, detector: GeneralizedRCNN) -> None:
        self.detector, self.heads = detector, detector.roi_heads
        self.in_features: Sequence[str] = self.heads.box_in_features

    def info(self, tap: str = HEAD) -> TapInfo:
        """Returns the properties of a tap in it, which both have."""
        predictor = self.heads.box_predictor
        weight = predictor.cls_score.weight
        return TapInfo(
            channels=weight.shape[1],
            stride=None,
            trainable=_trainable(self.detector.backbone, self.heads.box_head, predictor),
            head=HeadInfo(
                kind="proposals",
                num_classes=self.heads.num_classes,
                boxes=BoxMeaning(
                    coding=_coding(predictor.box2box_transform), columns=predictor.bbox_pred.out_features
                ),
                classifier_std=weight.detach().float().std().item(),
                softmax=self.softmax,
            ),
        )

    @property
    def softmax(self) -> bool:
        """True where a proposal has one class at most, False for sigmoid classifiers."""
        return not getattr(self.heads.box_predictor, "use_sigmoid_ce", False)

    @contextmanager
    def capture(self, taps: Sequence[str]) -> Iterator[Captured]:
        """While active, a forward pass of the box head fills the yielded dict."""
        found: dict[str, object] = {}

        def keep_proposals(module: nn.Module, args: tuple[list[Tensor], list[Boxes]], output: Tensor) -> None:
            found[PROPOSALS] = [boxes.tensor.detach() for boxes in args[1]]

        heads = self.heads
        hooks: dict[str, tuple[nn.Module, Hook]] = {
            HEAD: (heads.box_head, lambda module, args, output: found.update({HEAD: output.flatten(1)})),
            PREDICTIONS: (
                heads.box_predictor,
                lambda module, args, output: found.update({PREDICTIONS: output}),
            ),
        }
        with _hooked([(heads.box_pooler, keep_proposals), *(hooks[tap] for tap in taps)]):
            yield found

    def run(
        self,
        features: Mapping[str, Tensor],
        taps: Sequence[str],
        student: Captured,
        resizing: Resizing | None = None,
    ) -> Captured:
        """Runs as much of the head as the taps need, on the student's proposals.

        Args:
            features, taps, resizing: as :meth:`DenseHead.run`'s.
            student: what the student gave at its taps, its proposals in the pixels of the full images.
        """
        maps = [features[name] for name in self.in_features]
        proposals = student[PROPOSALS] if resizing is None else resizing.boxes(student[PROPOSALS])
        pooled = self.heads.box_pooler(maps, [Boxes(boxes) for boxes in proposals])
        with self.capture(taps) as found:
            hidden = self.heads.box_head(pooled)
            if PREDICTIONS in taps:
                self.heads.box_predictor(hidden)
        return found

    def pair(
        self, tap: str, student: Captured, teacher: Captured, batched_inputs: BatchedInputs
    ) -> FeaturesOfTap:
        """Returns a method's features at `HEAD` or `PREDICTIONS`."""
        if tap == PREDICTIONS:
            return PredictionPair(self._prediction(student[tap]), self._prediction(teacher[tap]), None)
        return [TapFeatures(student[tap][..., None, None], teacher[tap][..., None, None], None)]

    def _prediction(self, output: tuple[Tensor, Tensor]) -> Prediction:
        scores, boxes = output
        # A sigmoid classifier has a column for the background as well, which is never trained.
        return Prediction(scores if self.softmax else scores[:, : self.heads.num_classes], boxes)


Head = Union[DenseHead, ProposalHead]


def find_head(detector: nn.Module) -> Head:
    """Returns the head of a detector.

    Raises:
        UnknownTap: it has none of the known kinds.
    """
    if isinstance(detector, (RetinaNet, FCOS)) and _has(detector.head, "cls_subnet", "cls_score"):
        return DenseHead(detector)
    heads = getattr(detector, "roi_heads", None)
    plain = isinstance(heads, StandardROIHeads) and not isinstance(heads, (CascadeROIHeads, RROIHeads))
    if heads is not None and plain and _has(heads.box_predictor, "cls_score", "bbox_pred"):
        return ProposalHead(detector)
    raise UnknownTap(
        f"{type(detector).__name__} has no head of RetinaNet, FCOS or a Faster or Mask R-CNN with an FPN"
    )


def needs_labels(detector: nn.Module, tap: str) -> bool:
    """Returns True for a tap that gives features only for images with labels.

    The proposals of a two-stage head are sampled by them, and the features of RetinaNet's head count where
    they leave an anchor that is not ignored.
    """
    if tap not in HEAD_TAPS:
        return False
    return isinstance(find_head(detector), ProposalHead) or (tap == HEAD and isinstance(detector, RetinaNet))


def needs_full_size(detector: nn.Module, tap: str) -> bool:
    """Returns True for a tap that cannot take a teacher's features of smaller images.

    An anchor or a point of a dense head stands for objects of its own sizes, which are others there.
    """
    needing = (PREDICTIONS, CLASS_MAPS, CROSS_PREDICTIONS)
    return tap in needing and isinstance(find_head(detector), DenseHead)


def _has(module: nn.Module, *names: str) -> bool:
    return all(hasattr(module, name) for name in names)


def _half(subnet: nn.Sequential) -> int:
    """Returns the index of the last but one activation in a subnet, of the only one with one convolution.

    Raises:
        UnknownTap: the subnet is not a sequence of convolutions, norms and activations.
    """
    last = max((index for index, layer in enumerate(subnet) if isinstance(layer, nn.Conv2d)), default=None)
    if last is None:
        layers = sorted({type(layer).__name__ for layer in subnet})
        raise UnknownTap(f"there is no convolution among the layers of its head, which are {layers}")
    return last - 1 if last else len(subnet) - 1


def _trainable(*modules: nn.Module) -> bool:
    return any(parameter.requires_grad for module in modules for parameter in module.parameters())


def _coding(transform: object) -> dict[str, object]:
    """Returns how box outputs encode boxes, the same for yaml's tuples and a LazyConfig's lists."""
    found = {name: getattr(transform, name, None) for name in BOX_CODING}
    return {name: list(x) if isinstance(x, Sequence) else x for name, x in found.items() if x is not None}


@contextmanager
def _hooked(hooks: Sequence[tuple[nn.Module, Hook]]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
