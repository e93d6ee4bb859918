"""One run, from the command line to the last evaluation."""

from .main import argument_parser, main

__all__ = ["argument_parser", "main"]
