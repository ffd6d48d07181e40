"""One model held on a device, its weights replaced in place from lazily read shards."""
