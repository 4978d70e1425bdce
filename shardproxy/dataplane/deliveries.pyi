# Whose a reply is: a client's slot, a part of a split command, a Python callback, or nobody's any more.
# For cimport only: nothing here is called from Python.
