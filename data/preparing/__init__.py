"""What every preparation of data needs, whatever its kind."""
