"""Exit codes, after sysexits.h."""

DONE = 0
NOT_PASSED = 1  # diagnostics failed, under --strict
USAGE = 2
BAD_DATA = 65
MISSING = 66  # an input that is not there
INTERNAL = 70
CANNOT_WRITE = 73
INTERRUPTED = 75  # what there was is saved
