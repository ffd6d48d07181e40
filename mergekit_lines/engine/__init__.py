"""One tensor from its sources to its place."""
