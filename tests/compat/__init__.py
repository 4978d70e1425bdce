"""redis-py's own test-suite, through the proxy: what passes on one Redis must pass here, or say why not.

    python -m tests.compat                             # one node and three, RESP2 and RESP3: 15 minutes
    python -m tests.compat --nodes 1 --proto 3 pubsub  # in parts: of the suite's files, those that match
    python -m tests.compat --accept                    # write what failed into expected/, reasons guessed

What is compared: a test that passes directly on a plain Redis and does not pass through the proxy must be
in expected/one.txt or expected/three.txt, with a reason; one that is there must fail. Else the run fails.

suite      the suite: its source distribution from PyPI, its own environment, runs of its files; all in build/
recorder   a pytest plugin that runs inside of the suite: writes down each test's outcome as it comes
expected   the lists of expected differences, and the comparison
run        the command line; the servers
"""
