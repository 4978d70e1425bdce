# Connections to nodes: chosen, written to, kept, given up.
# For cimport only: nothing here is called from Python.
