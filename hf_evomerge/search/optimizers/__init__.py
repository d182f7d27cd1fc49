"""Optimizers that are asked for genomes and told their fitness."""
