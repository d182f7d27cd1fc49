"""The parts of tests/slow/reliability.py."""
