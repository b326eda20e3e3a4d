"""What codistillation is compared with: other uses of several machines."""
