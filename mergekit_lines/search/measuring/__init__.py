"""The measurements of a search: what is measured beside LiNeS, and on which live models."""
