# Compiled; nothing of it is for Python.
