"""The runner."""
