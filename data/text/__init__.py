"""Text as lanes of tokens."""
