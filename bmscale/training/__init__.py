"""Training: optimizer, schedule, training states, metrics, and the loop in train.py."""
