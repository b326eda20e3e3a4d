"""Tools that all preparations of data share."""
