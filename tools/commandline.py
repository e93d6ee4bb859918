"""Parsers, output and errors of the commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mgd_det.errors import ConfigError

BAD_INPUT = 2  # exit code


def argument_parser(description: str | None, examples: str) -> argparse.ArgumentParser:
    """Returns a parser whose help keeps the line breaks of both texts."""
    return argparse.ArgumentParser(
        description=description, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def say(text: str) -> None:
    """Print a text at once, also into a pipe."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@contextmanager
def bad_input_in_one_line() -> Iterator[None]:
    """Turn a ConfigError into one line on stderr and exit code 2."""
    try:
        yield
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(BAD_INPUT)
