# A client's reply queue: slots in the order of its commands, and the client's output.
# For cimport only: nothing here is called from Python.
