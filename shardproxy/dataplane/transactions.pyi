# MULTI ... EXEC without WATCH: held here, sent to its shard as one run.
# For cimport only: nothing here is called from Python.
