"""Step times of the torch engine and of other engines."""
