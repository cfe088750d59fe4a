"""From a model folder to the people who use it."""
