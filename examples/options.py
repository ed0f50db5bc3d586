"""Command lines of the examples: their common options, and errors in one line."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

__all__ = ["Parser", "training_parser", "writable"]


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")  # one line, without the usage

    def add_numbers(self, *options: tuple[str, int, int, int, str]) -> None:
        """Whole numbers: each a name, its default, its lowest and highest value, and what it means."""
        for name, default, lowest, highest, text in options:
            self.add_argument(
                name,
                type=whole_number(lowest, highest),
                default=default,
                metavar="N",
                help=f"{text} (default: {default})",
            )


def whole_number(lowest: int, highest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isdecimal() and lowest <= int(text) <= highest):
            raise argparse.ArgumentTypeError(f"expected a whole number from {lowest} to {highest}, got {text!r}")
        return int(text)

    return parse


def writable(*formats: str) -> Callable[[str], Path]:
    def parse(text: str) -> Path:
        path = Path(text)
        if path.suffix[1:].lower() not in formats:
            message = f"expected a file name that ends in {'one of ' * (len(formats) > 1)}{', '.join(formats)}"
            raise argparse.ArgumentTypeError(f"{message}, got {text!r}")
        try:
            is_new = not os.path.lexists(path)
            path.open("ab").close()
            if is_new:
                path.unlink()
        except OSError as error:
            raise argparse.ArgumentTypeError(f"cannot write {text!r}: {error.strerror}") from None
        return path

    return parse


def training_parser(description: str, *, epochs: int, picture: str | None = None) -> Parser:
    """--epochs, --seed, --seeds and --samples; and --output, where an example draws a picture."""
    parser = Parser(description=description, allow_abbrev=False)
    parser.add_numbers(
        ("--epochs", epochs, 1, 10_000, "passes over the training data"),
        ("--seeds", 3, 1, 1000, "trainings, each with the next seed"),
        ("--seed", 0, 0, 2**31, "of the first training: its split, initial weights and noise"),
        ("--samples", 50, 1, 10_000, "of the weights, for a prediction"),
    )
    if picture is not None:
        is_picture, text = writable("jpg", "pdf", "png", "svg"), f"the picture (default: {picture})"
        parser.add_argument("--output", type=is_picture, default=picture, metavar="FILE", help=text)
    return parser
