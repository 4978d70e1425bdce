"""Builds with sanitizers, each in a folder of its own below build/, made again only where sources changed.

    python tests/fuzz/build.py asan      gcc, AddressSanitizer, UBSan: a Python with environment() loads it
    python tests/fuzz/build.py fuzz      clang, the same and libFuzzer's coverage; and the program `fuzz`

A build is a copy of the package with its own compiled modules, and the module fuzz_harness.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
SANITIZE = "address,undefined"
COMMON = ["-g1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=undefined"]
DIRECTIVES = ["cdivision=True", "boundscheck=False", "wraparound=False"]


def folder(kind: str) -> Path:
    return ROOT / "build" / kind


def program(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise SystemExit(f"{name} is missing: install Debian's {package} (apt-get install {package})")
    return found


@cache
def build(kind: str) -> Path:
    """Makes or updates a build; kind: "asan" or "fuzz". Returns the folder to put on PYTHONPATH."""
    if kind == "fuzz":
        cc = program("clang", "clang and libclang-rt-14-dev")
        flags = [f"-fsanitize=fuzzer-no-link,{SANITIZE}", "-O1", *COMMON]
    else:
        cc = program("gcc", "gcc")
        flags = [
            f"-fsanitize={SANITIZE}",
            "-O0",
            *COMMON,
        ]  # every test run compiles it: in half the time of -O1
    base, env = folder(kind), dict(os.environ)
    lib = base / "lib"
    env |= {
        "CC": cc,
        "LDSHARED": f"{cc} -shared",
        "SHARDPROXY_CFLAGS": " ".join(flags),
        "SHARDPROXY_LDFLAGS": flags[0],
    }
    lib.mkdir(parents=True, exist_ok=True)
    run = [sys.executable, "setup.py", "--quiet", "build", f"--build-base={base}", f"--build-lib={lib}"]
    run += [f"--build-temp={base / 'temp'}", "--parallel=2"]
    made = subprocess.run(run, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if made.returncode:
        raise SystemExit(made.stdout)
    harness(cc, flags, base, lib)
    return lib


def newer(made: Path, sources: list[Path]) -> bool:
    return made.exists() and all(made.stat().st_mtime >= source.stat().st_mtime for source in sources)


def harness(cc: str, flags: list[str], base: Path, lib: Path) -> None:
    c, module = base / "fuzz_harness.c", lib / ("fuzz_harness" + str(sysconfig.get_config_var("EXT_SUFFIX")))
    include = f"-I{sysconfig.get_path('include')}"
    if not newer(module, [HERE / "harness.pyx", *ROOT.glob("shardproxy/core/*.pxd")]):
        options = [part for directive in DIRECTIVES for part in ("-X", directive)]
        subprocess.run(
            [
                *(sys.executable, "-m", "cython", "-3", *options, "-I", str(ROOT)),
                *("--module-name=fuzz_harness", "-o", str(c), str(HERE / "harness.pyx")),
            ],
            check=True,
        )
        subprocess.run(
            # not instrumented for coverage: it is the package that is to be explored
            [
                cc,
                "-shared",
                "-fPIC",
                "-w",
                include,
                f"-fsanitize={SANITIZE}",
                "-O1",
                *COMMON,
                str(c),
                "-o",
                str(module),
            ],
            check=True,
        )
    if base == folder("fuzz") and not newer(base / "fuzz", [HERE / "main.c", HERE / "build.py"]):
        where, name = sysconfig.get_config_var("LIBDIR"), f"python{sysconfig.get_config_var('LDVERSION')}"
        subprocess.run(
            [
                *(cc, f"-fsanitize=fuzzer,{SANITIZE}", "-g", include, str(HERE / "main.c"), "-rdynamic"),
                *(f"-L{where}", f"-Wl,-rpath,{where}", f"-l{name}", "-o", str(base / "fuzz")),
            ],
            check=True,
        )


def environment(lib: Path) -> dict[str, str]:
    """What a Python needs to load the "asan" build: the sanitizer's library first, and malloc alone."""
    library = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return dict(os.environ) | {
        "PYTHONPATH": str(lib),
        "PYTHONMALLOC": "malloc",
        "LD_PRELOAD": library,
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:quarantine_size_mb=16:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }


if __name__ == "__main__":
    print(build(sys.argv[1]))
