"""Training, whatever the engine: recipes, the loop, and runs that can be resumed."""
