"""Evaluation of one recipe: sources, live models, scores, gradients, devices, memory."""
