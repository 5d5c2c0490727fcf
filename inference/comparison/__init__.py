"""The parts of a comparison, one file each, in the order in which they are reported."""
