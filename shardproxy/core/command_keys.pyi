# Where a command's keys are.
# For cimport only: nothing here is called from Python.
