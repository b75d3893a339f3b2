"""Whether the samples of a batch know of each other: follows the axis that counts samples through a graph."""
