"""What is written beside the weights."""
