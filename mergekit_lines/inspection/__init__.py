"""What a recipe will do, by headers alone."""
