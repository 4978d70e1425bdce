"""`python -m tests.compat`."""

import sys

from tests.compat.run import main

sys.exit(main())
