# What nodes send: read, cut into frames, and handed to whoever the upstream's FIFO says is next.
# For cimport only: nothing here is called from Python.
