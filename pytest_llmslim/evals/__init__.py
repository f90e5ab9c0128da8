"""Evaluations: one file each. A quality number is always made from the same forward passes as the timing."""
