# The texts of scripts.
# For cimport only: nothing here is called from Python.
