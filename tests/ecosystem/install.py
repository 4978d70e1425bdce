"""What the jobs need, from PyPI and npm, in their newest versions, into build/ecosystem."""

import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
BUILD = HERE.parent.parent / "build" / "ecosystem"
PYTHON = BUILD / "venv" / "bin" / "python"
NODE_MODULES = BUILD / "node" / "node_modules"

PACKAGES = ["celery[redis]", "packaging", "redis", "hiredis", "rq", "django-redis", "Flask-Caching", "flask"]
NPM = ["ioredis", "redis"]


def everything() -> None:
    """Installs what is not there; ends the program when node or npm is missing."""
    BUILD.mkdir(parents=True, exist_ok=True)
    if not PYTHON.exists():
        venv.create(BUILD / "venv", with_pip=True)
    if not (BUILD / "python-installed").exists():
        subprocess.run([PYTHON, "-m", "pip", "-q", "install", *PACKAGES], check=True)
        (BUILD / "python-installed").touch()
    if shutil.which("npm") is None:
        sys.exit("npm is missing: install Debian's npm (apt-get install npm)")
    if not all((NODE_MODULES / name).exists() for name in NPM):
        options = ["--no-package-lock", "--no-audit", "--no-fund", "--silent"]
        subprocess.run(["npm", "install", "--prefix", BUILD / "node", *options, *NPM], check=True)
