"""What ``learn`` learns from, how it is scored, and how it is shown."""
