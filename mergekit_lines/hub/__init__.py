"""To the Hub and back: ``push``, ``pull``, and inputs that lie there."""
