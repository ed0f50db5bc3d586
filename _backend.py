"""PEP 517 backend: setuptools', asking for torch only where the environment to install into has none.

Compiling needs torch's headers on disk, never an importable torch. So an isolated build reads those of the
user's own torch instead of downloading a second one.
"""

import runpy
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 - every other hook as it is


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    torch_dir = runpy.run_path("illia_ext/_native/build.py")["torch_dir"]
    return build_meta.get_requires_for_build_wheel(config_settings) + ([] if torch_dir() else ["torch>=2.10"])


get_requires_for_build_editable = get_requires_for_build_wheel
