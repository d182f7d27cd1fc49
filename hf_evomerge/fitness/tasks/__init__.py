"""Tasks: one file each, with the settings of its section and how it scores a model."""
