"""What is measured on validation and test data, with its intervals, and what a test keeps of every document."""
