"""The exchange through a folder, for members that are separate jobs."""
