"""Click logs in the format of Criteo's challenge."""
