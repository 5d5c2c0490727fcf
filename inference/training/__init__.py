"""The parts of `ppgen.inference.train`."""
