"""The search over the options of a recipe's row."""
