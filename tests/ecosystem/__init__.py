"""Clients and job queues as people install them, a real job through each: on plain Redis, through the proxy.

    python -m tests.ecosystem                    # installs them into build/ecosystem (pip, npm), runs all
    python -m tests.ecosystem -k "celery or rq"  # what follows goes to pytest

install      the packages: an environment and a node_modules of their own, so that none of it is in ours
jobs         the table of jobs; what cannot work yet is expected to fail, strictly
clients/     a program a client: `PROGRAM PORT JOB` ends with 0 when its job came out right
"""
