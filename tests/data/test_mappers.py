"""Which mapper reads the images of a matching, in pipelines of many kinds."""

from __future__ import annotations

import copy
import logging
from functools import partial
from operator import itemgetter

import pytest
import torch
from detectron2.data import (
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data import transforms as T
from detectron2.data.detection_utils import read_image
from helpers.projects import SixteenBitMapper
from torch.utils.data import DataLoader

from mgd_det import RematchHook, Trainer, register_datasets
from mgd_det.data.mappers import test_time_mapper as find_mapper
from mgd_det.detectron2_compat import mapper_of
from mgd_det.engine.exact_resume import ExactLoader
from mgd_det.errors import ConfigError


class OlderMapper:
    """In the manner of projects that began before Detectron2 had a list of augmentations."""

    def __init__(self, cfg, is_train: bool = True) -> None:
        self.tfm_gens = [T.Resize((48, 48)), T.RandomFlip()]
        self.crop_gen = [T.RandomCrop("absolute", (20, 20))]
        self.is_train = is_train

    def __call__(self, record):
        record = copy.deepcopy(record)
        image = read_image(record["file_name"], "RGB")
        image, _ = T.apply_transform_gens(self.tfm_gens + (self.crop_gen or []), image)
        record["image"] = torch.as_tensor(image.transpose(2, 0, 1).copy())
        if not self.is_train:
            record.pop("annotations", None)
        return record


class ForTrainingAlone(OlderMapper):
    def __call__(self, record):
        assert self.is_train
        return super().__call__(record)


def grey(record, level: int):
    """A mapper without a class."""
    return {"image": torch.full((3, 8, 8), level), "height": 8, "width": 8}


@pytest.fixture
def cfg(student_cfg):
    register_datasets(student_cfg)
    return student_cfg


def first_record(cfg):
    return lambda: get_detection_dataset_dicts(cfg.DATASETS.TRAIN)[0]


def found(cfg, training, testing=None):
    """The mapper of a pipeline with these mappers."""
    loader = build_detection_train_loader(cfg, mapper=training)
    return find_mapper(
        cfg,
        first_record(cfg),
        loader,
        partial(build_detection_test_loader, mapper=testing) if testing else None,
    )


@pytest.mark.parametrize("grouping", [True, False])
def test_the_mapper_is_found_in_stock_loaders(grouping, cfg):
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouping
    mapper = SixteenBitMapper(cfg, True)
    assert mapper_of(build_detection_train_loader(cfg, mapper=mapper)) is mapper
    collating = build_detection_train_loader(cfg, mapper=mapper, collate_fn=itemgetter(0))
    assert mapper_of(collating) is mapper
    assert mapper_of(build_detection_test_loader(cfg, cfg.DATASETS.TEST[0], mapper=mapper)) is mapper


def test_the_mapper_is_found_in_the_loader_of_exact_resume(cfg):
    cfg.SEED = 1
    assert type(mapper_of(ExactLoader(cfg, DatasetMapper(cfg, True)))) is DatasetMapper


def test_a_stock_pipeline_is_read_as_ever(cfg):
    def never():
        raise AssertionError("stock pipelines need no trial")

    loader = Trainer.build_train_loader(cfg)
    mapper = find_mapper(cfg, never, loader, Trainer.build_test_loader)
    record, stock = first_record(cfg)(), DatasetMapper(cfg, False)
    assert type(mapper) is DatasetMapper
    assert torch.equal(mapper(record)["image"], stock(record)["image"])


def test_the_channels_of_a_stock_mapper_are_kept(cfg):
    mapper = found(cfg, DatasetMapper(cfg, True, image_format="L"))
    assert mapper(first_record(cfg)())["image"].shape[0] == 1


def test_a_mapper_that_derives_from_the_stock_one(cfg):
    cfg.INPUT.MIN_SIZE_TRAIN = (32,)
    training = SixteenBitMapper(cfg, True)
    mapper = found(cfg, training)
    record = first_record(cfg)()
    assert torch.equal(mapper(record)["image"], DatasetMapper(cfg, False)(record)["image"].float() * 256)
    assert training.is_train  # what trains is another one


def test_a_mapper_in_the_older_manner_loses_its_augmentation(cfg):
    mapper = found(cfg, OlderMapper(cfg))
    assert mapper(first_record(cfg)())["image"].shape == (3, 64, 64)


def test_the_test_loaders_own_mapper_comes_first(cfg):
    mapper = found(cfg, OlderMapper(cfg), partial(grey, level=7))
    assert mapper({})["image"].unique().tolist() == [7]


def test_a_mapper_for_training_alone_leaves_it_to_the_test_loaders(cfg):
    assert type(found(cfg, ForTrainingAlone(cfg), DatasetMapper(cfg, False))) is DatasetMapper
    with pytest.raises(
        ConfigError, match=r"^mapper = 'ForTrainingAlone': cannot read .*Give RematchHook\(cfg"
    ):
        found(cfg, ForTrainingAlone(cfg))


def test_a_function_keeps_its_augmentation_and_says_so(cfg, caplog):
    function = partial(grey, level=3)
    with caplog.at_level(logging.INFO, "detectron2"):
        assert found(cfg, function)({})["image"].unique().tolist() == [3]
    assert "whose augmentation stays. Give RematchHook(cfg, mapper=...)" in caplog.text


def test_a_loader_without_a_mapper_is_named(cfg, caplog):
    assert type(find_mapper(cfg, first_record(cfg), DataLoader([1, 2]), None)) is DatasetMapper
    assert "no mapper is found in the training loader, a DataLoader" in caplog.text


def test_a_mapper_that_is_given(cfg):
    images = RematchHook(cfg, mapper=partial(grey, level=9)).matching.images
    assert {x["image"].max().item() for batch in images(0) for x in batch} == {9}


def test_images_that_are_not_in_detectron2s_catalog(cfg):
    cfg.DATASETS.TRAIN = ("of_nobody",)
    with pytest.raises(
        ConfigError, match=r"DATASETS\.TRAIN = .*cannot read its images there .*set `matching\."
    ):
        RematchHook(cfg).matching.images(0)
