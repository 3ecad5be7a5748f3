"""Several stages, one after the other, each an ordinary fit in a process of its own."""
