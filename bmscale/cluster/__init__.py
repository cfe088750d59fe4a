"""SLURM: what is checked before ranks start, and submitting a job."""
