"""Build the package: CMake compiles the native library, setuptools packs it.

Environment:
    CXX: the C++17 compiler; c++, g++ or clang++ from PATH by default.
    FASTBERT_CUDA: `on`, `off` (default) or `auto`: whether csrc/cuda is compiled as well; auto does
        so when a CUDA compiler is found. Nothing about the build host's CPU or GPU is ever asked.
    CMAKE_BUILD_PARALLEL_LEVEL: how many compilers run at once; the number of CPUs by default.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def check_compiler() -> None:
    """Stop with one sentence where there is no C++ compiler, before CMake says it in many.

    Raises:
        SystemExit: naming what was looked for, and what to install.
    """
    named = os.environ.get("CXX", "")
    looked_for = [shlex.split(named)[0]] if named.strip() else ["c++", "g++", "clang++", "icpx"]
    if not any(shutil.which(compiler) for compiler in looked_for):
        where = "which CXX names" if named.strip() else "on PATH"
        sys.exit(
            f"fastbert needs a C++17 compiler, and there is no {' or '.join(looked_for)} "
            f"({where}): install one, for example with `apt-get install g++`, or name one in CXX."
        )


class CMakeBuild(build_ext):
    """Run CMake once and put every extension it produced where setuptools expects extensions.

    Which extensions there are is CMake's decision (fastbert._cuda is optional), so the list is read
    from what was built.
    """

    def run(self) -> None:
        """Compile, and lay the extensions where they are packed from."""
        built = self._compile()
        self.extensions = [Extension(f"fastbert.{file.name.split('.')[0]}", []) for file in built]
        self.ext_map = {ext.name: ext for ext in self.extensions}
        for ext, file in zip(self.extensions, built, strict=True):
            ext._full_name = ext.name
            ext._links_to_dynamic = False
            ext._needs_stub = False
            ext._file_name = self.get_ext_filename(ext.name)
            target = Path(self.build_lib) / ext._file_name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, target)
        if self.inplace:
            self.copy_extensions_to_source()

    def _compile(self) -> list[Path]:
        check_compiler()
        # In the source tree, not in a temporary directory: a second build is incremental.
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        out = build / "out"
        shutil.rmtree(out, ignore_errors=True)
        # The build requirements themselves, not whatever PATH holds first.
        cmake = str(Path(import_module("cmake").CMAKE_BIN_DIR) / "cmake")
        env = dict(os.environ)
        env["PATH"] = os.pathsep.join([import_module("ninja").BIN_DIR, env.get("PATH", "")])
        configure = [
            cmake, "-S", str(ROOT), "-B", str(build), "--fresh", "-G", "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DFASTBERT_OUTPUT_DIR={out}",
            f"-DFASTBERT_CUDA={os.environ.get('FASTBERT_CUDA', 'off')}",
        ]  # fmt: skip
        compile_all = [cmake, "--build", str(build)]
        if "CMAKE_BUILD_PARALLEL_LEVEL" not in env:
            compile_all += ["--parallel", str(os.cpu_count() or 1)]
        for command in (configure, compile_all):
            status = subprocess.run(command, env=env, check=False).returncode
            if status != 0:
                sys.exit(f"fastbert could not be built: `{' '.join(command)}` failed (see above).")
        return sorted(out.glob("*.so"))


setup(
    # `make native` links fastbert/triton_kernels to ../triton_kernels; the package comes from
    # its real place.
    packages=[
        *find_packages(include=["fastbert", "fastbert.*"], exclude=["fastbert.triton_kernels*"]),
        "fastbert.triton_kernels",
    ],
    package_dir={"fastbert.triton_kernels": "triton_kernels"},
    package_data={"fastbert": ["py.typed", "_C.pyi", "data/*"]},
    ext_modules=[Extension("fastbert._C", [])],
    cmdclass={"build_ext": CMakeBuild},
)
