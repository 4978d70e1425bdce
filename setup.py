"""The compiled modules. A setup.py only because pyproject.toml cannot say "on Linux only".

`core` compiles everywhere; `dataplane` (epoll) on Linux. Neither is optional there: a build that cannot
compile fails, since a silent fallback to something slower would be a bug.
"""

import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

PARTS = ["core", *(["dataplane"] if sys.platform == "linux" else [])]
# SHARDPROXY_CFLAGS adds flags, for example -fsanitize=address (docs/development.md)
FLAGS = [
    "-O3",
    "-fno-strict-aliasing",
    "-Wno-unused-function",
    *os.environ.get("SHARDPROXY_CFLAGS", "").split(),
]

# tests/run builds in place before it installs: an editable install would compile all of it once more
BUILT = bool(os.environ.get("SHARDPROXY_BUILT"))

modules = [
    Extension(
        ".".join(source.with_suffix("").parts),
        [str(source)],
        extra_compile_args=FLAGS if sys.platform != "win32" else [],
        extra_link_args=os.environ.get("SHARDPROXY_LDFLAGS", "").split(),
    )
    for part in ([] if BUILT else PARTS)
    for source in sorted(Path("shardproxy", part).glob("*.pyx"))
]

setup(
    ext_modules=cythonize(
        modules,
        nthreads=os.cpu_count() or 1,
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
        },
    )
)
