"""Figures of validation and test data, with their intervals, and the results that a test keeps for every document."""
