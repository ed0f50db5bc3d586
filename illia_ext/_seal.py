"""The last 64 bytes of a built library: the digest of the sources that it was built from, and the file's own.

A cut file kills the process that maps it, a changed one computes something else, and one of other sources lacks what
Python expects: each is an ImportError instead, for a few milliseconds at import. Only the standard library is
imported: setup.py runs this file.
"""

import hashlib
from pathlib import Path

__all__ = ["check", "seal"]

SIZE = hashlib.sha256().digest_size


def _sources_digest(csrc: Path) -> bytes:
    digest = hashlib.sha256()
    for path in sorted(path for suffix in ("h", "cpp", "cuh", "cu") for path in csrc.glob(f"*/*.{suffix}")):
        digest.update(b"%s %d\n" % (path.relative_to(csrc).as_posix().encode(), path.stat().st_size))
        digest.update(path.read_bytes())
    return digest.digest()


def seal(library: Path, csrc: Path) -> None:
    """Ends a fresh library with both digests."""
    content = library.read_bytes() + _sources_digest(csrc)
    library.write_bytes(content + hashlib.sha256(content).digest())


def check(library: Path, csrc: Path) -> None:
    """Raises ImportError for a library that is not as it was sealed, or that other sources than `csrc` gave.

    A program that was packed without sources, as PyInstaller does, has none to compare with.
    """
    content = library.read_bytes()
    again = "install illia_ext again (in a checkout: pip install -e .)"
    if hashlib.sha256(content[:-SIZE]).digest() != content[-SIZE:]:
        raise ImportError(
            f"{library} is damaged: its {len(content)} bytes do not have the checksum that the build wrote into them, "
            f"or strip or patchelf changed them later; {again}"
        )
    if csrc.is_dir() and content[-2 * SIZE : -SIZE] != _sources_digest(csrc):
        raise ImportError(f"{library} was built from other sources than those in {csrc}; {again}")
