"""The ways a merge is run."""
