"""Results as one self-contained HTML page: every figure, every claim, how each was made."""

from jaxsign.report.page import Live as Live
from jaxsign.report.page import check_file as check_file
from jaxsign.report.page import render as render
from jaxsign.report.page import write as write
