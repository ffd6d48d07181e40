"""Pure tensor functions, one file per idea: no files, no configuration, no logging.

Arithmetic is in fp32 (float64 for float64 inputs) whatever the storage dtype, and is
rounded once, at the end, to the dtype of the output.
"""
