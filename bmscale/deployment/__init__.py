"""From a model folder to the people who use it: formats that other programs load, and a server."""
