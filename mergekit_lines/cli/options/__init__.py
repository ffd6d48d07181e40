"""Options that several commands have, and what `doctor` starts in another process."""
