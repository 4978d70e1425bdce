# New clients: accepted in the reactor, or turned away with a reason.
# For cimport only: nothing here is called from Python.
