"""What members see of each other's weights, and when (§2.1)."""
