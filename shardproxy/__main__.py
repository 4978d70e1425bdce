"""`python -m shardproxy`, and what the installed command calls."""

import signal


def run() -> None:
    # until there is something to stop, Ctrl-C ends it without a traceback from the middle of an import
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from shardproxy.cli import main

    main(prog_name="shardproxy")


if __name__ == "__main__":
    run()
