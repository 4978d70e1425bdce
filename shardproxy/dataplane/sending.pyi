# Sending a command to the shard, or the shards, of its keys.
# For cimport only: nothing here is called from Python.
