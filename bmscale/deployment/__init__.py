"""From a model folder to what other programs load: formats, the gate that each export must pass, the report."""
