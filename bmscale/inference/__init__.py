"""Using a trained model: text in, text out. Imports model, data and engine, never evaluation or training."""
