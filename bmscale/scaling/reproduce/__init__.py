"""Published scaling laws fitted again from their public data: one file a paper, `papers` runs them."""
