"""The paper's experiments: the only code that knows method and data."""
