"""How large each room of the house is: `python tools/house.py [REVISION]`, by default the last commit's."""

import subprocess
import sys
from collections import defaultdict
from pathlib import Path, PurePath
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
CODE = {".py", ".h", ".cpp", ".cu", ".cuh"}
PRODUCT = ("csrc", "illia_ext")


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def room_of(path: PurePath) -> str:
    """The folder; tests and examples are one room each."""
    return str(path.parent) if path.parts[0] in PRODUCT else path.parts[0] if len(path.parts) > 1 else "."


def main(revision: str = "HEAD") -> None:
    paths = [PurePath(line) for line in git("ls-tree", "-r", "--name-only", revision).splitlines()]
    rooms: dict[str, list[int]] = defaultdict(list)
    for path in (path for path in paths if path.suffix in CODE):
        lines = len(git("show", f"{revision}:{path}").splitlines())
        rooms[room_of(path)].append(lines)
        rooms["= product" if path.parts[0] in PRODUCT else "= all else"].append(lines)
    print(f"{'room':<20} {'files':>5} {'lines':>6} {'median':>6} {'longest':>7}")
    for room, lengths in sorted(rooms.items()):
        print(f"{room:<20} {len(lengths):>5} {sum(lengths):>6} {median(lengths):>6.0f} {max(lengths):>7}")


if __name__ == "__main__":
    main(*sys.argv[1:])
