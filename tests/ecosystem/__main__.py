"""`python -m tests.ecosystem`: installs, then pytest over jobs.py."""

import sys

import pytest

from tests.ecosystem import install

install.everything()
sys.exit(pytest.main([str(install.HERE / "jobs.py"), "-v", "-rxX", "-p", "no:cacheprovider", *sys.argv[1:]]))
