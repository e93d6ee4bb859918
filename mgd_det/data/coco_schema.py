"""The types of what Detectron2 and pycocotools read in a COCO json, as a JSON schema.

What an entry lacks is not the schema's business: it depends on the use of the set, see `coco_checks`.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Callable

import fastjsonschema

JsonObject = dict[str, Any]

LARGEST = 2**53  # integers beyond it lose digits in the tables of the evaluation
_ID = {
    "type": ["integer", "string"],
    "minimum": -LARGEST,
    "maximum": LARGEST,
    "description": "a whole number or a text",
}
_NUMBER_ID = {**_ID, "type": "integer", "description": "a whole number below 2^53"}
_SIZE = {"type": "number", "exclusiveMinimum": 0, "description": "a number of pixels above 0"}
_NUMBERS = {
    "type": "array",
    "items": {"type": "number", "description": "a number"},
    "description": "a list of numbers",
}


def _entries(description: str, **properties: JsonObject) -> JsonObject:
    """Returns the schema of a list of objects."""
    return {
        "type": "array",
        "description": f"a list of {description}",
        "items": {"type": "object", "description": "an object", "properties": properties},
    }


def coco_schema(*, evaluated: bool) -> JsonObject:
    """Returns the schema of an annotation file.

    Args:
        evaluated: the set is evaluated on, which asks for numbers as the annotations' ids.
    """
    run_lengths = {
        "type": "object",
        "required": ["counts", "size"],
        "properties": {
            "counts": {
                "type": ["string", "array"],
                "items": {"type": "integer", "minimum": 0, "maximum": 2**32 - 1},
            },
            "size": {
                "type": "array",
                "minItems": 2,
                "maxItems": 2,
                "items": {"type": "integer", "minimum": 1, "maximum": 2**16},
            },
        },
    }
    polygons = {"type": "array", "items": _NUMBERS}
    return {
        "type": "object",
        "description": "an object with the entries images, annotations and categories",
        "required": ["images", "annotations", "categories"],
        "properties": {
            "images": _entries(
                "images",
                id=_ID,
                file_name={"type": "string", "minLength": 1, "description": "a text"},
                height=_SIZE,
                width=_SIZE,
            ),
            "categories": _entries("categories", id=_ID, name={"type": "string", "description": "a text"}),
            "annotations": _entries(
                "annotations",
                id=_NUMBER_ID if evaluated else _ID,
                image_id=_ID,
                category_id=_ID,
                bbox={
                    **_NUMBERS,
                    "minItems": 4,
                    "maxItems": 4,
                    "description": "four numbers [x, y, width, height]",
                },
                area={"type": "number", "minimum": 0, "description": "a number of pixels"},
                iscrowd={"type": "integer", "enum": [0, 1], "description": "1 for crowds and 0 for others"},
                segmentation={
                    "anyOf": [{"type": "null"}, polygons, run_lengths],
                    "description": "a list of polygons (lists of numbers), or run lengths of counts and size",
                },
                keypoints={
                    "anyOf": [{"type": "null"}, _NUMBERS],
                    "description": "a list of numbers",
                },
            ),
        },
    }


@cache
def _validator(evaluated: bool) -> Callable[[object], object]:
    return fastjsonschema.compile(coco_schema(evaluated=evaluated))


def schema_problem(content: object, *, evaluated: bool) -> str:
    """Returns what is of a wrong type in an annotation file and where, in words; "" if nothing is.

    Args:
        content: the parsed file.
        evaluated: as :func:`coco_schema`'s.
    """
    try:
        _validator(evaluated)(content)
    except fastjsonschema.JsonSchemaValueException as error:
        *parents, last = error.path
        place = "".join(f"[{part}]" if str(part).isdigit() else f".{part}" for part in [*parents, last][1:])
        value = repr(error.value)
        value = value if len(value) <= 100 else f"{value[:100]}..."
        expected = (error.definition or {}).get("description") or f"of another form ({error.rule})"
        return f"{place.lstrip('.') or 'the file'} is {value}, and should be {expected}"
    return ""
