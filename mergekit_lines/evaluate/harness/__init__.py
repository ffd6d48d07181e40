"""lm-evaluation-harness on a model object that is there."""
