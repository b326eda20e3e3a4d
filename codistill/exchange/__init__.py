"""How members see each other's weights, and when (§2.1)."""
