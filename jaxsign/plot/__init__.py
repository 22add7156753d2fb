"""Draws Datasets in a paper's style: median and 5-95 % band over seeds, theory as thin dashed lines.

Every function takes `ax=None` and returns the Axes. matplotlib is imported when one is called.
"""

from jaxsign.plot.checks import faults as faults
from jaxsign.plot.colours import COLOURS as COLOURS
from jaxsign.plot.colours import ENGINES as ENGINES
from jaxsign.plot.colours import GROUPS as GROUPS
from jaxsign.plot.colours import KERNELS as KERNELS
from jaxsign.plot.colours import NEGATIVE as NEGATIVE
from jaxsign.plot.colours import NEUTRAL as NEUTRAL
from jaxsign.plot.colours import OTHERS as OTHERS
from jaxsign.plot.colours import PLACES as PLACES
from jaxsign.plot.colours import POSITIVE as POSITIVE
from jaxsign.plot.colours import RESIDUALS as RESIDUALS
from jaxsign.plot.colours import SECONDS as SECONDS
from jaxsign.plot.colours import shades as shades
from jaxsign.plot.files import save as save
from jaxsign.plot.files import style as style
from jaxsign.plot.files import svg as svg
from jaxsign.plot.maps import cell_name as cell_name
from jaxsign.plot.maps import heat_map as heat_map
from jaxsign.plot.numbers import has_band as has_band
from jaxsign.plot.numbers import keep_band as keep_band
from jaxsign.plot.numbers import keep_map as keep_map
from jaxsign.plot.panels import MARKERS as MARKERS
from jaxsign.plot.panels import NAMES as NAMES
from jaxsign.plot.panels import NARROW as NARROW
from jaxsign.plot.panels import STYLES as STYLES
from jaxsign.plot.panels import WIDE as WIDE
from jaxsign.plot.panels import alarms_of as alarms_of
from jaxsign.plot.panels import band as band
from jaxsign.plot.panels import dots as dots
from jaxsign.plot.panels import dynamics as dynamics
from jaxsign.plot.panels import error_at_loss as error_at_loss
from jaxsign.plot.panels import footer as footer
from jaxsign.plot.panels import hatch_underflow as hatch_underflow
from jaxsign.plot.panels import key as key
from jaxsign.plot.panels import law_look as law_look
from jaxsign.plot.panels import legend_name as legend_name
from jaxsign.plot.panels import letter_panels as letter_panels
from jaxsign.plot.panels import level_line as level_line
from jaxsign.plot.panels import literal as literal
from jaxsign.plot.panels import looks as looks
from jaxsign.plot.panels import loss as loss
from jaxsign.plot.panels import mark_stages as mark_stages
from jaxsign.plot.panels import phase as phase
from jaxsign.plot.panels import sizes as sizes
from jaxsign.plot.panels import small_print as small_print
from jaxsign.plot.panels import snr as snr
from jaxsign.plot.panels import style_key as style_key
from jaxsign.plot.panels import tick_log as tick_log
from jaxsign.plot.panels import traces as traces
from jaxsign.plot.script import figure_script as figure_script
