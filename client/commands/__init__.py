"""The commands of `bros`, a module each: `add_parser` declares its arguments, `run` returns the exit code."""
