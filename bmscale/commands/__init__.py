"""The commands, grouped by what they do. Imports stand inside them: each loads only what it needs."""
