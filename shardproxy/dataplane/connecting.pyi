# Connections to nodes on their way: made, until they are up.
# For cimport only: nothing here is called from Python.
