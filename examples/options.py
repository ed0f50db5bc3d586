"""Command lines of the examples: their common options, and errors in one line."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

__all__ = ["Parser", "training_parser", "whole_number"]

PICTURE_FORMATS = ("jpg", "pdf", "png", "svg")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")  # one line, without the usage


def whole_number(lowest: int, highest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isdecimal() and lowest <= int(text) <= highest):
            raise argparse.ArgumentTypeError(f"expected a whole number from {lowest} to {highest}, got {text!r}")
        return int(text)

    return parse


def writable_picture(text: str) -> Path:
    path = Path(text)
    if path.suffix[1:].lower() not in PICTURE_FORMATS:
        formats = ", ".join(PICTURE_FORMATS)
        raise argparse.ArgumentTypeError(f"expected a file name that ends in one of {formats}, got {text!r}")
    try:
        is_new = not os.path.lexists(path)
        path.open("ab").close()
        if is_new:
            path.unlink()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: {error.strerror}") from None
    return path


def training_parser(description: str, *, epochs: int, picture: str | None = None) -> Parser:
    """--epochs, --seed, --seeds and --samples; and --output, where an example draws a picture."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = Parser(description=description, formatter_class=formatter, allow_abbrev=False)
    for name, default, lowest, highest, text in (
        ("--epochs", epochs, 1, 10_000, "passes over the training data"),
        ("--seeds", 3, 1, 1000, "trainings, each with the next seed"),
        ("--seed", 0, 0, 2**31, "of the first training: its split, initial weights and noise"),
        ("--samples", 50, 1, 10_000, "of the weights, for a prediction"),
    ):
        parser.add_argument(name, type=whole_number(lowest, highest), default=default, metavar="N", help=text)
    if picture is not None:
        parser.add_argument("--output", type=writable_picture, default=picture, metavar="FILE", help="the picture")
    return parser
