"""The one step of every method: what the author of a method reads."""
