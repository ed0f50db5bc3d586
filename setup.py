"""Builds the C++ library `illia_ext._C`; all else about the package stands in pyproject.toml."""

import runpy
from pathlib import Path
from types import SimpleNamespace

from pybind11.setup_helpers import ParallelCompile
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

build = SimpleNamespace(**runpy.run_path("illia_ext/_native/build.py"))


class BuildLibrary(build_ext):
    """Looks for torch only when it compiles: metadata and sdist need none."""

    def build_extension(self, ext: Extension) -> None:
        self.force = True  # ILLIA_EXT_CUDA may have changed, which no file's date shows
        ext.extra_compile_args += [*build.compile_flags(), f"-DILLIA_SOURCES_DIGEST={build.sources_digest()}"]
        ext.extra_link_args += build.link_flags()
        ext.extra_objects += build.compile_cuda(Path("build", "cuda"))  # kept, also by editable builds: minutes
        super().build_extension(ext)


ParallelCompile("MAX_JOBS").install()
setup(
    ext_modules=[
        Extension(
            "illia_ext._C",
            [f"csrc/{name}" for name in build.sources(".cpp")],
            depends=["illia_ext/_native/build.py", *map(str, Path("csrc").rglob("*.*"))],
            define_macros=[("TORCH_EXTENSION_NAME", "_C")],
            extra_compile_args=["-g0"],  # Python's own flags ask for debug information: 20 times the size
            language="c++",
        )
    ],
    cmdclass={"build_ext": BuildLibrary},
)
