"""Makes adapters: recipes, data, the training loop. Uses `adapter/` below its store; knows no page."""
