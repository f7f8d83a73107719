"""Training: the paper's recipes, runs that survive."""
