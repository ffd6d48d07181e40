"""From a recipe and headers to one task and one coefficient per tensor."""
