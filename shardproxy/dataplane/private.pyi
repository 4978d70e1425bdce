# Private upstreams: for what a connection that many clients share cannot do.
# For cimport only: nothing here is called from Python.
