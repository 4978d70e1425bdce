# Connections to nodes: made, kept, written to, given up.
# For cimport only: nothing here is called from Python.
