"""Methods beside codistillation: other ways to use several machines."""
