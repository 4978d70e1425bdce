"""`python -m tests.ecosystem`: installs, then pytest over jobs.py and sessions.py."""

import sys

import pytest

from tests.ecosystem import install

install.everything()
FILES = [str(install.HERE / name) for name in ("jobs.py", "sessions.py")]
sys.exit(pytest.main([*FILES, "-v", "-rxX", "-p", "no:cacheprovider", *sys.argv[1:]]))
