"""The exchange through a folder: members that are jobs of their own."""
