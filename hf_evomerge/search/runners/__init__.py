"""Runners of evaluations: in this process, in workers, on a Ray cluster."""
