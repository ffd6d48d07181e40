"""LiNeS itself, in pure Python."""
