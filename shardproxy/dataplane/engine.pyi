# The state that all parts of the engine share, and the few operations on its lists.
# For cimport only: nothing here is called from Python.

class Engine: ...
