"""The checker's own score: a kernel's source is mutated, and the check must catch every mutant that computes something else."""
