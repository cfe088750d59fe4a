"""From parallel text to batches: readers, cleaning, tokenizer, memory-mapped shards, global steps."""
