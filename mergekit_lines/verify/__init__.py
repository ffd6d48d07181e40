"""A merge a second time, in float64."""
