# Where a command goes, by its row of the command table.
# For cimport only: nothing here is called from Python.
