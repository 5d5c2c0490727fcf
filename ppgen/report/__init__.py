"""Self-contained HTML pages from plain data; this knows no model and no algorithm."""

from ppgen.report.document import Picture as Picture
from ppgen.report.document import Report as Report
from ppgen.report.document import Section as Section
from ppgen.report.document import Table as Table
from ppgen.report.document import Verdict as Verdict
