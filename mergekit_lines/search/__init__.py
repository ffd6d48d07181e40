"""Searches over the coefficients of one recipe, each point measured on a live model."""
