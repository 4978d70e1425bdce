"""`python -m shardproxy`: the command line."""

from shardproxy.cli import main

if __name__ == "__main__":
    main(prog_name="shardproxy")
