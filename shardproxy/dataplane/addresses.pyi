# Addresses of clients' sockets in words.
# For cimport only: nothing here is called from Python.
