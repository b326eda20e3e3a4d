"""What lies on disk: checkpoints, and the folders that Orbax writes."""
