"""Recipes, and the way from what they ask for to what runs."""
