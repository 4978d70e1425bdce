"""The benchmark: shardproxy and its peers over the same nodes, in the same run, as one table.

    python -m tests.bench            # the whole table, about ten minutes
    python -m tests.bench --quick    # does the harness work? half a minute

processes  a child process: its CPU, its memory, its end
peers      the proxies compared, a class each, and the Redis nodes behind them
keys       seeding through a proxy and reading everything back
load       one sample: redis-benchmark or openloop.c against one proxy, hits checked on the nodes
measures   what is measured and what must come out: data only
memory     10,000 clients that idle, 10,000 that pipeline 1 MB and leave (clients live in crowd)
memcached  memcached nodes, one load program for both protocols: python -m tests.bench.memcached
startup    CPU of `shardproxy --help` and `import shardproxy`
report     samples -> medians, ratios, goals, the table
run        the command line and the alternating rounds
"""
