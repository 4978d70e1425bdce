"""The client library: the same ring as the proxy's, without the hop.

    from shardproxy import ShardedRedis
    client = ShardedRedis.from_config("shardproxy.toml")
    client.set("user:1", "Ada")

    settings    what a client is made from: a configuration, or shards with their URLs
    routing     pure: a command → its shard, its parts, or why it is refused
    everywhere  commands without a key: which shards they concern, how their replies are merged
    wire        a command as bytes; what reads replies
    health      pure but for a lock: what a client knows of its nodes, and what follows
    errors      what a call may raise
    connection  one socket to one node; a shard's pool of them
    sync        ShardedRedis
    pipeline    its pipelines
    merging     pure: what the replies of several shards come to
    following   pure: which proxy is asked for the topology, when, and what comes of it; follower: who asks
    probing     active probes, if they are asked for; telemetry: OpenTelemetry, if it is
    aio         AsyncShardedRedis; its parts: aio_connection, aio_shard, aio_asking, aio_pipeline, aio_pubsub

Rules: no thread and no socket when it is imported or made; a connection that may still bring a reply is never
used for another call; a write that may have run is never sent twice.
"""
