"""Tables in YAML files, with their keys and the kinds of their values checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mgd_det.errors import ConfigError

KINDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "a table",
}


class UniqueKeys(yaml.SafeLoader):
    """Refuses keys given twice, of which YAML keeps the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key, (key_node, _) in zip(keys, node.value):
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key!r} is given twice", problem_mark=key_node.start_mark
                )
        return super().construct_mapping(node, deep)


def read_table(key: str, path: Path) -> dict[str, Any]:
    """Returns the table in a file; `key` is what names the file in errors.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), UniqueKeys)
    except (OSError, ValueError, yaml.YAMLError) as error:
        remedy = "Give the path of a YAML file; --help shows one."
        raise ConfigError(key, str(path), f"cannot be read ({error})", remedy) from error
    if not isinstance(document, dict):
        raise ConfigError(key, str(path), "not a table", "Write one as --help shows it.")
    return document


def check_table(
    where: str, table: dict[str, Any], kinds: Mapping[str, type], required: Sequence[str] = ()
) -> None:
    """Check a table's keys and the kinds of its values, `where` being what goes before a key's name."""
    for key, value in table.items():
        if key not in kinds:
            raise ConfigError(f"{where}{key}", value, "unknown key", f"The keys are {', '.join(kinds)}.")
        wanted = (int, float) if kinds[key] is float else kinds[key]
        if not isinstance(value, wanted) or isinstance(value, bool):
            kind = KINDS[kinds[key]]
            raise ConfigError(f"{where}{key}", value, f"not {kind}", f"Give {kind}.")
        if key == "iterations" and table[key] < 1:
            raise ConfigError(f"{where}{key}", value, "less than 1", "Give the length of a run.")
    for key in required:
        if key not in table:
            raise ConfigError(f"{where}{key}", None, "missing", f"Give {KINDS[kinds[key]]}; see --help.")
