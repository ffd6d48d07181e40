"""mergekit as a host, and the process that merges."""
