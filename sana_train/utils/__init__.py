"""Floor 0 helpers: counter-based randomness, atomic files, library quirks."""
