"""The measurements. A probe takes hooked models (or completions) and prompts and returns one tidy table."""
