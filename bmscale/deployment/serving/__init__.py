"""`bmscale serve`: models behind HTTP."""
