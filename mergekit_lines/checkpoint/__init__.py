"""Checkpoint folders: their headers, and the partial folder a merge is written to."""
