# Answers that the engine gives itself: errors, and the few fixed replies.
# For cimport only: nothing here is called from Python.
