# What clients send: read, and cut into commands.
# For cimport only: nothing here is called from Python.
