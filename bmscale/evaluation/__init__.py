"""Scores of translations and of models. Imports inference and what lies below it, never training."""
