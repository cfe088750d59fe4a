"""A trained model on its way to people: formats of other engines, and whether they say what it says."""
