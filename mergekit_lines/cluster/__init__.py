"""Work shared among processes and machines, by Ray; the commands alone know of it."""
