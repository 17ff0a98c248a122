"""Builds the C library with make, then the two extension modules that link it; all three lie in the
package's folder. Everything else is in pyproject.toml."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ABI = re.search(r"MM2_ABI = (\d+)", Path("csrc", "minimax2.h").read_text())[1]
VERSION = re.search(r'return "([\d.]+)";', Path("csrc", "api.c").read_text())[1]
LIBRARY = Path("build", "release", "libminimax2.so")


def missing():
    """Debian's names of the packages that the build needs and does not find."""
    compiler = (os.environ.get("CC") or "cc").split()[0]
    commands = {"make": "make", "gcc": compiler, "pkg-config": "pkg-config"}
    packages = [package for package, command in commands.items() if not shutil.which(command)]
    if packages:
        return packages
    makefile = Path("csrc", "Makefile").read_text()
    libraries = re.search(r"^DEPENDENCIES = (.*)$", makefile, re.M)[1].split()
    return ["lib" + library.removeprefix("lib").removesuffix("-8") + "-dev"
            for library in libraries
            if subprocess.run(["pkg-config", "--exists", library]).returncode]


class BuildWithLibrary(build_ext):
    """build_ext that makes libminimax2.so first and puts it beside the modules, under the name
    that they ask for (csrc/Makefile)."""

    def run(self):
        jobs = str(len(os.sched_getaffinity(0)))
        subprocess.run(["make", "-s", "-j", jobs, "-C", "csrc"], check=True)
        super().run()
        folder = Path(self.get_ext_fullpath("minimax2._tensor")).parent
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"{LIBRARY.name}*"):
            old.unlink()  # and not overwritten: a running process may have it mapped
        shutil.copy2(LIBRARY, folder / f"{LIBRARY.name}.{ABI}")


if packages := missing():
    sys.exit("minimax2: building the C library needs what is missing here; on Debian: "
             f"apt-get install {' '.join(packages)}")

setup(
    version=VERSION,
    cffi_modules=["bindings/cffi_build.py:ffibuilder"],
    ext_modules=[
        Extension(
            "minimax2._tensor",
            ["bindings/tensor_type.c"],
            depends=["bindings/dlpack_abi.h", "csrc/minimax2.h"],
            include_dirs=["csrc", "bindings"],
            library_dirs=[str(LIBRARY.parent)],
            libraries=["minimax2"],
            extra_link_args=["-Wl,-rpath,$ORIGIN"],
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": BuildWithLibrary},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
