"""A folder in the format of Pascal VOC, with the classes of the demonstration data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_pascal_voc


def make_voc(data: Path, folder: Path, split: str) -> str:
    """Writes a split of the demonstration data as VOC does, registers it, and returns its name."""
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    document = json.loads((data / f"annotations/{split}.json").read_text())
    classes = {c["id"]: c["name"] for c in document["categories"]}
    stems = []
    for image in document["images"]:
        stem = Path(image["file_name"]).stem
        stems.append(stem)
        shutil.copy(data / split / image["file_name"], folder / f"JPEGImages/{stem}.jpg")
        objects = []
        for annotation in document["annotations"]:
            if annotation["image_id"] == image["id"]:
                x, y, w, h = annotation["bbox"]
                box = {"xmin": x + 1, "ymin": y + 1, "xmax": x + w, "ymax": y + h}
                corners = "".join(f"<{key}>{round(value)}</{key}>" for key, value in box.items())
                name = classes[annotation["category_id"]]
                objects.append(
                    f"<object><name>{name}</name><pose>-</pose><truncated>0</truncated>"
                    f"<difficult>0</difficult><bndbox>{corners}</bndbox></object>"
                )
        size = f"<size><width>{image['width']}</width><height>{image['height']}</height></size>"
        xml = f"<annotation>{size}{''.join(objects)}</annotation>"
        (folder / f"Annotations/{stem}.xml").write_text(xml)
    (folder / f"ImageSets/Main/{split}.txt").write_text("\n".join(stems) + "\n")
    registered = f"voc_{split}_{abs(hash(folder))}"
    if registered not in DatasetCatalog:
        register_pascal_voc(registered, str(folder), split, 2007, list(classes.values()))
        MetadataCatalog.get(registered).evaluator_type = "pascal_voc"
    return registered
