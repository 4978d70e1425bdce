# Clients by the address they come from: counted, and held back together.
# For cimport only: nothing here is called from Python.
