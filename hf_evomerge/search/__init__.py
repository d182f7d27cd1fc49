"""Search: spaces of recipes, the optimizer that proposes genomes, the study that keeps every
trial."""
