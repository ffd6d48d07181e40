"""The kernels that CPUs spend their time in, compiled: one pass where torch needs several.

Each means what its torch neighbour in :mod:`mergekit_lines.kernels` means, to the bit; torch's
stays the reference, and works wherever these cannot.
"""
