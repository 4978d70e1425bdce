"""Inputs that libFuzzer starts from: `python tests/fuzz/seeds.py FOLDER`."""

import hashlib
import random
import sys
from pathlib import Path

from programs import inputs

if __name__ == "__main__":
    rnd = random.Random(0)
    for _ in range(600):
        data = inputs(rnd)
        if len(data) <= 2048:
            Path(sys.argv[1], hashlib.sha1(data).hexdigest()).write_bytes(data)
